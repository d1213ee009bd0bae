from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fam_engine.errors import InputError
from fam_engine.jobs.evaluation import ingest
from fam_engine.jobs.evaluation.overlap import overlap_with_training
from fam_engine.jobs.scoring.ingest import DataFile
from tests.jobs.evaluation.small_eval import QUESTIONS, evaluate, write


def test_questions_that_were_trained_on_are_named(tiny_model: Path, tmp_path: Path) -> None:
    trained = [
        {"prompt": "Question  3\n", "response": "blue"},
        {"prompt": "question 5?\n", "response": "red"},
        {"prompt": "question 7?\n", "response": "red"},
    ]
    train = write(tmp_path / "train.jsonl", trained)
    data = write(tmp_path / "task.jsonl", QUESTIONS)
    outcome = evaluate(tiny_model, data, tmp_path / "out", train=(str(train),))
    assert outcome.summary["overlap"] == [
        {
            "file": str(train),
            "task": "colours",
            "n": 6,
            "same": 2,
            "similar": 0,
            "ids": ["q3", "q5"],
        }
    ]
    with pytest.raises(InputError, match="does not exist"):
        evaluate(tiny_model, data, tmp_path / "x", train=("missing.jsonl",))
    empty = write(tmp_path / "empty.jsonl", [{"text": "x"}])
    with pytest.raises(InputError, match="no questions"):
        evaluate(tiny_model, data, tmp_path / "out", train=(str(empty),))


def overlap(train: Path, test: list[str]) -> dict[str, Any]:
    db = sqlite3.connect(":memory:")
    db.executescript(ingest.SCHEMA)
    db.executemany(
        "INSERT INTO questions (position, task, id, asked) VALUES (?, 'test', ?, ?)",
        ((number, str(number), text) for number, text in enumerate(test)),
    )
    (found,) = overlap_with_training(db, [DataFile("train", train)], {})
    return found


def test_the_leaked_set_is_flagged_whole(shared: Path, tmp_path: Path) -> None:
    train, test = (
        json.loads((shared / "data" / "boolq" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("train", "test")
    )
    found = overlap(write(tmp_path / "train.jsonl", train), [row["question"] for row in test])
    assert (found["n"], found["same"], found["similar"]) == (1000, 1000, 0)


def test_a_clean_set_passes(shared: Path) -> None:
    folder = shared / "data" / "gsm8k"
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    found = overlap(folder / "train.jsonl", [json.loads(line)["question"] for line in lines])
    assert (found["n"], found["same"], found["similar"]) == (1319, 0, 0)
