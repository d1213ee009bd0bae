from __future__ import annotations

import inspect
import json
from functools import partial
from pathlib import Path

import pytest

from fam_engine.cli.rewrite import run as command
from fam_engine.config import RewriteConfig
from tests.cli.conftest import Run

GOOD = '{"prompt": "one and one\\n", "response": "A: 2", "id": "a"}\n'


@pytest.fixture
def run(run: Run, tiny_model: Path) -> Run:
    """Run `fam-engine rewrite` with the tiny model."""
    return partial(run, "rewrite", "--model", tiny_model, "--max-new-tokens", "8", "--samples", "2")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text(GOOD)
    return file


def test_a_job_prints_its_yield_and_leaves_its_files(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, err = run("--data", data, "--out", out, "--method", "answer", "--quiet")
    assert (code, err) == (0, "")
    assert "0 of 1 answers rewritten" in printed
    names = {path.name for path in out.iterdir()} - {".fam-engine"}
    assert names == {"rewritten.jsonl", "candidates.parquet", "summary.json", "quarantine.jsonl"}


def test_quarantined_records_end_in_exit_code_3_and_json_is_all_of_the_output(
    run: Run, data: Path, tmp_path: Path
) -> None:
    data.write_text(GOOD + "not json\n")
    flags = ("--data", data, "--out", tmp_path / "out", "--method", "answer", "--json")
    code, printed, _ = run(*flags, "--dry-run")
    assert code == 3
    assert json.loads(printed)["candidates"] == [1, 2]
    code, printed, _ = run(*flags)
    assert code == 3
    assert json.loads(printed)["records"]["quarantined"] == 1


def test_a_dry_run_shows_the_prompt(run: Run, data: Path, tmp_path: Path) -> None:
    code, printed, _ = run("--data", data, "--out", tmp_path / "out", "--dry-run", "--quiet")
    assert code == 0
    assert "[Question]\none and one\n\n[Answer]\nA: 2\n" in printed
    assert "1 candidates if the first are verified, 2 if none is" in printed


@pytest.mark.parametrize(
    ("flags", "code", "starts", "named"),
    [
        (("--method", "paraphrase"), 2, "error[E_CONFIG_VALUE]", "'minimum-change'"),
        (("--temperature", "0"), 2, "error[E_CONFIG_VALUE]", "greater than 0"),
        (("--samples", "0"), 2, "error[E_CONFIG_VALUE]", "samples"),
        (("--prompt-file", "nowhere.txt"), 2, "error[E_PROMPT_FILE] nowhere.txt", "cannot be read"),
        (("--adapter", "nowhere"), 10, "error[E_ADAPTER_NOT_FOUND] nowhere", "not a folder"),
    ],
)
def test_an_error_is_one_line(
    run: Run, data: Path, tmp_path: Path, flags: tuple[str, ...], code: int, starts: str, named: str
) -> None:
    found, _, err = run("--data", data, "--out", tmp_path / "out", "--quiet", *flags)
    assert found == code
    assert err.startswith(starts)
    assert named in err
    assert err.count("\n") == 1


def test_a_wrong_place_in_a_prompt_file_is_named_by_line(
    run: Run, data: Path, tmp_path: Path
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{{question}}\n{{responce}}\n")
    flags = ("--data", data, "--out", tmp_path / "out", "--prompt-file", prompt)
    code, _, err = run(*flags, "--quiet")
    assert code == 2
    assert err.startswith(f"error[E_PROMPT_PLACE] {prompt}:2: ")


def test_the_flags_are_the_settings_and_no_others() -> None:
    flags = {name.rstrip("_") for name in inspect.signature(command).parameters}
    assert flags - set(RewriteConfig.model_fields) == {"config", "dry_run", "as_json", "quiet"}
    assert set(RewriteConfig.model_fields) <= flags
