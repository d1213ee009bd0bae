"""Questions to train on and to be tested by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fam_engine.errors import InputError
from fam_engine.jobs.experiment.config import TaskSettings
from fam_engine.jobs.experiment.questions import (
    Question,
    read_answers,
    training_questions,
)
from fam_engine.jobs.experiment.questions import (
    test_questions as questions_of_test,
)
from fam_engine.jobs.selection.overlap import fingerprint

GENERATED = TaskSettings(skills=("average", "perimeter"), num_train=6, num_test=4)


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_generated_training_and_test_do_not_meet() -> None:
    test = list(questions_of_test("new", GENERATED, None))
    train, counts = training_questions(GENERATED, None, set(), None)
    assert [row["task"] for row in test] == ["new"] * 4
    assert len(train) == counts["read"] == 6
    assert {row["group"] for row in train} == {f"q{place}" for place in range(6)}
    assert not {row["prompt"] for row in test} & {row["prompt"] for row in train}


def test_questions_of_the_test_and_repeated_ones_are_left_out(tmp_path: Path) -> None:
    file = write(
        tmp_path / "human.jsonl",
        {"prompt": "How many?\n", "response": "5"},
        {"prompt": "How  MANY?", "response": "6"},
        {"prompt": "In the test?", "response": "7"},
    )
    task = TaskSettings(test=str(file))
    kept, counts = training_questions(task, file, {fingerprint("in the test")}, None)
    assert [row["prompt"] for row in kept] == ["How many?\n"]
    assert counts == {"read": 3, "in_test": 1, "repeated": 1}
    names = {fingerprint(text) for text in ("how many", "in the test")}
    with pytest.raises(InputError, match="leaves no question"):
        training_questions(task, file, names, None)


def test_the_gold_answer_of_a_question_and_answer_file_is_the_final_one(tmp_path: Path) -> None:
    essay = "Because the sun is far away, and the moon is near to us at night."
    file = write(
        tmp_path / "a.jsonl",
        {"question": "2 + 3?", "answer": "It is 5."},
        {"question": "Why?", "answer": essay},
        {"question": "2 + 4?", "answer": "It is 5.", "correct": False},
    )
    (five, why, wrong) = read_answers(file)
    assert five[:2] == (Question({"question": "2 + 3?", "answer": "5"}, "2 + 3?"), "It is 5.")
    assert why[:2] == (Question({"question": "Why?"}, "Why?"), essay)
    assert wrong[:2] == (Question({"question": "2 + 4?"}, "2 + 4?"), "It is 5.")
    (five, *_) = read_answers(file, gold=True)
    assert five[0].row == {"question": "2 + 3?", "answer": "It is 5."}


def test_unreadable_rows_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "q", "response": "r"}\nnot json\n{"prompt": 5, "response": "r"}\n')
    assert len(list(read_answers(file))) == 1
