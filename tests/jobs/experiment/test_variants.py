"""Answers made from answers, by every rule."""

from __future__ import annotations

from typing import Any

import pytest

from fam_engine.errors import InputError
from fam_engine.jobs.experiment.config import AnswerSettings
from fam_engine.jobs.experiment.variants import Answer, as_record, by_rule, judged, own_only


def answers(texts: list[str], **row: Any) -> list[Answer]:  # noqa: ANN401 - any column
    rows = [
        {"prompt": f"q{place}\n", "group": f"q{place}", "answer": "5", **row}
        for place in range(len(texts))
    ]
    return [judged(row, text) for row, text in zip(rows, texts, strict=True)]


def make(settings: dict[str, Any], of: list[Answer], to: list[Answer] | None = None) -> list[str]:
    made = by_rule(AnswerSettings(**{"of": "y", **settings}), of, to or [], seed=0)
    return [answer.response for answer in made]


def test_answers_are_judged_where_there_is_gold() -> None:
    right, wrong = answers(["2 + 3 = 5\nA: 5", "A: 6"])
    assert (right.correct, wrong.correct) == (True, False)
    assert judged({"prompt": "q"}, "A: 5", known=True).correct is True
    assert judged({"prompt": "q"}, "A: 5").correct is None


def test_gold_only() -> None:
    assert make({"make": "gold-only", "form": "A: {answer}"}, answers(["a", "b"])) == ["A: 5"] * 2


def test_without_marks() -> None:
    assert make({"make": "without-marks"}, answers(["2 + 3 = <<2+3=5>>5\n#### 5"])) == [
        "2 + 3 = 5\n#### 5"
    ]


def test_correct_only() -> None:
    assert make({"make": "correct-only"}, answers(["A: 5", "A: 6"])) == ["A: 5"]
    with pytest.raises(InputError, match="leaves none"):
        make({"make": "correct-only"}, answers(["A: 6"]))


def test_length_matched_keeps_questions_answered_at_like_length() -> None:
    of = answers(["x" * n for n in [100] * 10 + [200, 50]])
    to = answers(["y" * 110] * 12)
    assert len(make({"make": "length-matched", "to": "z"}, of, to)) == 10
    with pytest.raises(InputError, match="leaves fewer than 10 answers"):
        make({"make": "length-matched", "to": "z"}, of[:9], to)


def test_total_length_matched_draws_as_much_text() -> None:
    of, to = answers(["x" * 200] * 100), answers(["y" * 100] * 100)
    settings = {"make": "total-length-matched", "to": "z"}
    made = make(settings, of, to)
    assert len(made) == 50
    assert made == make(settings, of, to)


def test_total_length_matched_does_not_look_for_short_ones() -> None:
    # A tenth is short; to fill what room is left with whatever fits would take all of them.
    of = answers(["x" * (20 if n % 10 == 0 else 400) for n in range(200)])
    made = make({"make": "total-length-matched", "to": "z"}, of, answers(["y" * 300] * 60))
    assert 17_600 <= sum(map(len, made)) <= 18_000
    assert sum(len(text) == 20 for text in made) < 10


def test_own_answers_leave_out_what_fell_back() -> None:
    records = [{"provenance": {"fell_back": fell}} for fell in (True, False)]
    assert own_only(records) == [records[1]]


def test_record_keeps_question_group_and_verdict() -> None:
    (answer,) = answers(["A: 5"])
    assert as_record(answer, "plain") == {
        "prompt": "q0\n",
        "group": "q0",
        "answer": "5",
        "response": "A: 5",
        "source": "plain",
        "correct": True,
    }
