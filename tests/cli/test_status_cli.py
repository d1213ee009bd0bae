from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fam_engine.jobs.journal import STATE_FOLDER
from fam_engine.jobs.outputs import OUTPUTS
from tests.cli.conftest import Run

ROWS = [
    {"prompt": f"{n} and one\n", "response": f"A: {n + 1}", "answer": str(n + 1), "task": "sums"}
    for n in range(4)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{broken\n")
    return file


JOBS = {
    "score": ((), "records"),
    "generate": (("--max-new-tokens", "4"), "records"),
    "rewrite": (("--max-new-tokens", "4", "--samples", "2"), "records tried"),
    "train": (("--steps", "2", "--rank", "2"), "steps"),
    "eval": (("--max-new-tokens", "4"), "questions"),
}
# What a process that ended earlier would not have left; by command, for its journal.
UNDONE = {
    "score": "DELETE FROM results WHERE entry = 1",
    "generate": "DELETE FROM texts WHERE position = 1",
    "rewrite": "DELETE FROM candidates WHERE position = 1",
    "train": "",
    "eval": "",
}


@pytest.mark.parametrize("command", JOBS)
def test_each_kind_of_job_says_how_far_it_is(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out"
    flags, unit = JOBS[command]
    job = (command, "--model", tiny_model, "--data", data, "--out", out, "--quiet", *flags)
    assert run(*job)[0] == 3
    status = told(run, out)
    assert (status["command"], status["state"], status["holder"]) == (command, "finished", None)
    progress = status["progress"]
    assert progress["unit"] == unit
    assert progress["done"] == progress["total"] == (2 if command == "train" else 4)
    assert sum(status["quarantined"].values()) == 1
    assert "quarantine.jsonl" in status["advice"]
    # The same command would compute or write it again.
    shutil.move(out / OUTPUTS[command][0], tmp_path / "lost")
    status = told(run, out)
    assert (status["state"], "same command" in status["advice"]) == ("stopped", True)
    shutil.move(tmp_path / "lost", out / OUTPUTS[command][0])
    assert told(run, out)["state"] == "finished"
    if statement := UNDONE[command]:
        with sqlite3.connect(out / STATE_FOLDER / "journal.sqlite") as db:
            db.execute(statement)
            db.execute("DELETE FROM meta WHERE name = 'finished'")
        db.close()
        status = told(run, out)
        assert (status["state"], status["progress"]["done"]) == ("stopped", 3)


def fail(*_: object, **__: object) -> None:
    raise RuntimeError


def test_an_evaluation_that_stopped_says_how_far_its_model_is(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    chosen = {"prompt": "which?", "choices": ["a", "b", "c"], "answer": "b"}
    data.write_text("".join(json.dumps(row) + "\n" for row in (*ROWS, chosen)))
    monkeypatch.setattr("fam_engine.jobs.evaluation.job.keep_samples", fail)
    job = ("eval", "--model", tiny_model, "--data", data, "--out", out, "--max-new-tokens", "4")
    assert run(*job)[0] == 1
    status = told(run, out)
    assert (status["state"], status["progress"]["phase"]) == ("stopped", "asking model 1")
    # Four answers are written, three options scored.
    assert (status["progress"]["done"], status["progress"]["total"]) == (7, 7)


def test_a_rewriting_that_stopped_says_which_attempt_it_is_at(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("fam_engine.jobs.rewriting.attempts.Attempts.judge", fail)
    job = ("rewrite", "--model", tiny_model, "--data", data, "--out", out)
    assert run(*job, "--method", "answer", "--max-new-tokens", "4")[0] == 1
    progress = told(run, out)["progress"]
    assert (progress["phase"], progress["done"], progress["total"]) == ("attempt 0", 4, 4)


def test_a_training_that_diverged_says_so(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("fam_engine.jobs.training.job._write_outputs", fail)
    job = ("train", "--model", tiny_model, "--data", data, "--out", out, "--rank", "2")
    assert run(*job, "--steps", "2")[0] == 1
    status = told(run, out)
    assert (status["state"], status["progress"]["done"]) == ("stopped", 2)
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "epoch": 1.0, "tokens": 0, "seconds": 0.1, "diverged": "nan"}\n')
    status = told(run, out)
    assert status["state"] == "diverged"
    assert "--learning-rate" in status["advice"]


def told(run: Run, out: Path) -> dict[str, Any]:
    code, printed, _ = run("status", out, "--json")
    assert code == 0
    status: dict[str, Any] = json.loads(printed)
    return status


def test_it_is_printed_in_a_few_lines(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("score", "--model", tiny_model, "--data", data, "--out", out, "--quiet")
    code, printed, _ = run("status", out)
    assert code == 0
    lines = "".join(printed.split("\n"))
    assert "score, finished" in lines
    assert "4 of 4 records (100%)" in printed
    assert "left out: 1 with E_" in printed
    assert run("status", tmp_path)[0] == 4


def test_a_command_that_was_refused_a_folder_changes_nothing_of_its_status(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = ("--model", tiny_model, "--data", data, "--out", out, "--quiet")
    assert run("score", *job)[0] == 3
    code, _, err = run("generate", *job, "--max-new-tokens", "4")
    assert code == 2
    assert "holds the job of another command" in err
    code, printed, _ = run("status", out)
    assert code == 0
    assert "finished" in printed
    assert "score, " in printed
