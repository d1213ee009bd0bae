"""No command replaces a file that is of no job in its folder; in a folder of its own it does as ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fam_engine.jobs.journal import STATE_FOLDER
from tests.cli.conftest import COMMANDS, MODEL_COMMANDS, Line, Run


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_a_command_leaves_it_does_not_replace_beside_no_job(
    command: str, line: Line, run: Run, tmp_path: Path
) -> None:
    if command == "select":
        run(*line("score", tmp_path / "s"))
    finished = tmp_path / "finished"
    assert run(*line(command, finished))[0] == 0
    assert run(*line(command, finished))[0] == 0
    names = {path.name for path in finished.iterdir()} - {STATE_FOLDER}
    assert len(names) >= 3
    for name in names:
        out = tmp_path / "others"
        out.mkdir()
        (out / name).write_text("of somebody else")
        code, _, error = run(*line(command, out))
        assert code == 2
        assert error.startswith(f"error[E_OUT] {out / name}: ")
        assert error.endswith("(choose another --out, or remove it)\n")
        assert [path.name for path in out.iterdir()] == [name]
        assert (out / name).read_text() == "of somebody else"
        shutil.rmtree(out)


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_it_is_said_before_anything_is_read(
    command: str, line: Line, run: Run, tmp_path: Path
) -> None:
    words = line(command, tmp_path)
    words[words.index("--model") + 1] = tmp_path / "no-such-model"
    (tmp_path / "summary.json").write_text("{}")
    assert "error[E_OUT]" in run(*words)[2]


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_a_file_is_no_output_folder(command: str, line: Line, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of somebody else")
    code, _, error = run(*line(command, tmp_path / "file"))
    assert code == 2
    assert error.startswith(f"error[E_OUT] {tmp_path / 'file'}: is a file")
    assert (tmp_path / "file").read_text() == "of somebody else"


def test_other_files_are_no_obstacle(line: Line, run: Run, tmp_path: Path) -> None:
    # Data lies in it, and without --tokens nothing replaces a table of them.
    (tmp_path / "tokens.parquet").write_text("of somebody else")
    words = [word for word in line("score", tmp_path) if word != "--tokens"]
    assert run(*words)[0] == 0
    assert (tmp_path / "tokens.parquet").read_text() == "of somebody else"


def test_a_worker_and_a_study_refuse_it_too(line: Line, run: Run, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of somebody else")
    assert "error[E_OUT]" in run(*line("score", tmp_path), "--shard", "1/2")[2]
    assert "error[E_OUT]" in run("experiment", "small", "--out", tmp_path)[2]
    assert not (tmp_path / STATE_FOLDER).exists()


def test_counts_do_not_replace_the_files_of_a_job(line: Line, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "scored"
    run(*line("score", out))
    summary = (out / "summary.json").read_bytes()
    code, _, error = run(*line("tokenize", out))
    assert code == 2
    assert "holds the job of another command" in error
    assert (out / "summary.json").read_bytes() == summary
