"""No command replaces a file that is of no job in its folder; in a folder of its own it does as ever."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fam_engine.jobs.journal import STATE_FOLDER
from tests.cli.conftest import Run

QUESTIONS = [
    {"id": f"q{n}", "prompt": f"{n} + 1?\n", "response": str(n + 1), "answer": str(n + 1)}
    for n in range(4)
]
MODEL_COMMANDS = {
    "score": "score --tokens",
    "train": "train --steps 1 --rank 1 --batch-size 2 --save-every 1",
    "generate": "generate --max-new-tokens 2",
    "rewrite": "rewrite --max-new-tokens 2 --samples 1",
    "eval": "eval --max-new-tokens 2",
    "tokenize": "tokenize --ids jsonl",
}
COMMANDS = (*MODEL_COMMANDS, "select")
Line = Callable[[str, Path], list[str | Path]]


@pytest.fixture
def line(tiny_model: Path, tmp_path: Path) -> Line:
    """Give the command line of a small job that writes into a folder."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))

    def make(command: str, out: Path) -> list[str | Path]:
        words: list[str | Path] = [*MODEL_COMMANDS.get(command, command).split(), "--quiet"]
        if command == "select":
            return [*words, "--data", data, "--scores", tmp_path / "s/scores.parquet", "--out", out]
        words += ["--model", tiny_model, "--data", data, "--out", out]
        return words if command == "tokenize" else [*words, "--device", "cpu"]

    return make


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
