"""A dry run writes nothing, so it needs no folder; a run that has none is told so as ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import COMMANDS, Line, Run

DRY = sorted({*COMMANDS} - {"tokenize"})


@pytest.mark.parametrize("command", DRY)
def test_it_needs_no_out(command: str, line: Line, run: Run, tmp_path: Path) -> None:
    if command == "select":
        run(*line("score", tmp_path / "s"))
    before = sorted(tmp_path.iterdir())
    words = line(command, None)
    code, printed, error = run(*words, "--dry-run", "--json")
    assert (code, error) == (0, "")
    json.loads(printed)
    assert sorted(tmp_path.iterdir()) == before
    code, _, error = run(*words)
    assert code == 2
    assert error == "error[E_CONFIG_VALUE]: setting `out` is missing (give --out)\n"


def test_nor_does_that_of_a_merge(line: Line, run: Run, tiny_model: Path, tmp_path: Path) -> None:
    run(*line("train", tmp_path / "t"))
    words = ["merge", "--model", tiny_model, "--adapter", tmp_path / "t" / "adapter"]
    code, printed, error = run(*words, "--dry-run", "--json", "--quiet")
    assert (code, error) == (0, "")
    assert json.loads(printed)["free_bytes"] is None
    assert run(*words)[2] == "error[E_CONFIG_VALUE]: setting `out` is missing (give --out)\n"


def test_nor_does_that_of_a_study(run: Run) -> None:
    code, printed, _ = run("experiment", "small", "--dry-run", "--json", "--quiet")
    assert code == 0
    assert not any(step["done"] for step in json.loads(printed)["steps"])
    assert run("experiment", "small")[2] == "error[E_USAGE]: --out is missing (give a folder)\n"


def test_an_out_in_the_settings_file_is_not_passed_over(
    line: Line, run: Run, tmp_path: Path
) -> None:
    run(*line("score", tmp_path / "s"))
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"out: {tmp_path / 's'}\n")
    words = [*line("select", None), "--config", settings, "--dry-run"]
    assert "is the folder of the scores" in run(*words)[2]
