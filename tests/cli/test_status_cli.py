from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fam_engine.jobs.journal import STATE_FOLDER
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
    if statement := UNDONE[command]:
        with sqlite3.connect(out / STATE_FOLDER / "journal.sqlite") as db:
            db.execute(statement)
            db.execute("DELETE FROM meta WHERE name = 'finished'")
        db.close()
        status = told(run, out)
        assert (status["state"], status["progress"]["done"]) == ("stopped", 3)


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
