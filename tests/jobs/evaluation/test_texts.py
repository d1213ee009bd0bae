from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fam_engine.errors import UsageError
from fam_engine.jobs.evaluation import ingest, texts
from fam_engine.measure.answers import judging

TASKS: list[tuple[dict[str, Any], str, bool]] = [
    ({"kind": "math", "answer": "#### 1,200"}, "6 * 200 = 1200\nA: 1200", True),
    ({"kind": "math", "answer": "12"}, "12 apples, 9 of them gone\nA: 3", False),
    ({"kind": "exact", "answer": "Paris"}, "paris.", True),
    ({"kind": "choice", "answer": "B", "choices": ["red", "blue"]}, "The answer is (B).", True),
    ({"kind": "choice", "answer": "B", "choices": ["red", "blue"]}, "A or B", False),
    (
        {"kind": "code", "tests": ["assert double(4) == 8"]},
        "```python\ndef double(x):\n    return 2 * x\n```",
        True,
    ),
    (
        {"kind": "code", "tests": ["assert double(4) == 8"]},
        "import os\ndef double(x):\n    os._exit(0)",
        False,
    ),
    ({"kind": "exact", "answer": "x"}, "", False),
]


@pytest.fixture
def questions() -> sqlite3.Connection:
    """Questions of every kind, in the form pass 1 leaves them."""
    db = sqlite3.connect(":memory:")
    db.executescript(ingest.SCHEMA)
    for position, (task, _, _) in enumerate(TASKS):
        db.execute(
            "INSERT INTO questions (position, file, line, kind, answer, choices, tests) "
            "VALUES (?, 'f', ?, ?, ?, ?, ?)",
            (
                position,
                position + 1,
                task["kind"],
                task.get("answer"),
                json.dumps(task.get("choices", [])),
                json.dumps(task.get("tests", [])),
            ),
        )
    return db


def open_with(questions: sqlite3.Connection, folder: Path, responses: list[str]) -> texts.Journal:
    journal = texts.open_texts(folder, {}, questions)
    with journal.commit() as db:
        for position, response in enumerate(responses):
            db.execute(
                "INSERT INTO texts VALUES (?, 0, ?, 3, 'eos', 0, NULL, NULL, NULL)",
                (position, response),
            )
    return journal


def test_every_kind_is_judged_by_its_own_rule(
    questions: sqlite3.Connection, tmp_path: Path
) -> None:
    responses = [response for _, response, _ in TASKS]
    with open_with(questions, tmp_path, responses) as journal:
        done: list[int] = []
        texts.judge_texts(journal, questions, done.append)
        answers = list(texts.answers(journal))
    assert sum(done) == len(TASKS)
    assert [answer.correct for answer in answers] == [correct for _, _, correct in TASKS]
    assert all(answer.code is None for answer in answers)


def test_a_text_that_is_no_answer_has_no_verdict(
    questions: sqlite3.Connection, tmp_path: Path
) -> None:
    with open_with(questions, tmp_path, ["1200"]) as journal:
        with journal.commit() as db:
            db.execute("INSERT INTO texts VALUES (1, 0, '', 2, 'nonfinite', 0, NULL, NULL, NULL)")
            db.execute("INSERT INTO texts VALUES (2, 0, '', 0, NULL, 1, NULL, NULL, NULL)")
            journal.quarantine([("f", 2, None, "E_NONFINITE", "no finite logits")])
            journal.quarantine([("f", 3, None, "E_CRASH", "the process died")])
        texts.judge_texts(journal, questions, lambda _: None)
        answers = list(texts.answers(journal))
    assert [(one.correct, one.code) for one in answers] == [
        (True, None),
        (None, "E_NONFINITE"),
        (None, "E_CRASH"),
    ]


def test_without_the_verifier_nothing_is_called_wrong(
    questions: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("math-verify is not installed", code="E_EXTRA")

    with open_with(questions, tmp_path, ["1200"]) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(judging, "judge_math", refuse)
            with pytest.raises(UsageError, match="math-verify"):
                texts.judge_texts(journal, questions, lambda _: None)
        assert texts.num_unjudged(journal) == 1
        texts.judge_texts(journal, questions, lambda _: None)
        assert next(texts.answers(journal)).correct
