"""Answers made from other answers by a rule, and answers as records.

In: the answers of one variant to some questions, and for matching those of another. Out: answers again. Lengths are
characters: the same for every model, and near enough to tokens within one kind of text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.experiment.config import AnswerSettings
from fam_engine.jobs.experiment.questions import Row
from fam_engine.jobs.experiment.steps import EMPTY
from fam_engine.jobs.generation.rows import with_answer
from fam_engine.measure.answers import guess_kind, judge

# GSM8K's calculator marks.
_MARKS = re.compile(r"<<.*?>>")
# Two answers are of matched length when the longer has at most this many times the characters.
MATCH_RATIO = 1.25
_MIN_MATCHED = 10


@dataclass(frozen=True)
class Answer:
    """An answer to a question.

    Attributes:
        row: The question: its columns and labels, no response.
        response: The text.
        correct: Whether it is right, where that is known.
    """

    row: Row
    response: str
    correct: bool | None

    @property
    def group(self) -> str:
        """Name its question within the task."""
        return str(self.row["group"])

    @property
    def length(self) -> int:
        """Count its characters."""
        return len(self.response)


def judged(row: Row, response: str, known: bool | None = None) -> Answer:
    """Give an answer with its correctness: judged where there is a gold answer, else as known."""
    gold, tests = row.get("answer"), row.get("tests") or ()
    if gold is None and not tests:
        return Answer(row, response, known)
    text = None if gold is None else str(gold)
    choices = row.get("choices") or ()
    kind = row.get("kind") or guess_kind(text, choices, tests)
    try:
        verdict = judge(response, kind=kind, answer=text, choices=choices, tests=tests)
    except UsageError:
        return Answer(row, response, known)  # only a verifier that is not installed could tell
    return Answer(row, response, known if verdict.correct is None else verdict.correct)


def by_rule(
    settings: AnswerSettings, of: Sequence[Answer], to: Sequence[Answer], *, seed: int
) -> list[Answer]:
    """Make a variant by a rule.

    gold-only             the gold answer alone, in `form`; what is left of an answer without its
                          reasoning.
    without-marks         the same text without `<<...>>`.
    correct-only          the answers known to be right.
    length-matched        the answers to those questions on which the variant `to` has about as many
                          characters, at most 1.25 times more or fewer.
    total-length-matched  as many answers, drawn at random, as have the total length of `to`.

    Args:
        settings: Which rule.
        of: What it is made from.
        to: What it is matched to.
        seed: Of what is drawn.

    Raises:
        InputError: The rule leaves nothing to train on (code `EMPTY`).
    """
    match settings.make:
        case "gold-only":
            made = [_gold(answer, settings.form) for answer in of if "answer" in answer.row]
        case "without-marks":
            made = [judged(a.row, _MARKS.sub("", a.response), a.correct) for a in of]
        case "correct-only":
            made = [answer for answer in of if answer.correct]
        case "length-matched":
            made = _length_matched(of, to)
        case "total-length-matched":
            made = _total_length_matched(of, to, seed)
        case _:
            made = list(of)
    if not made:
        least = (
            f"fewer than {_MIN_MATCHED} answers" if settings.make == "length-matched" else "none"
        )
        raise InputError(f"`{settings.make}` of `{settings.of}` leaves {least}", code=EMPTY)
    return made


def _gold(answer: Answer, form: str) -> Answer:
    text = form.replace("{answer}", str(answer.row["answer"]))
    return Answer(answer.row, text, correct=True)


def _length_matched(of: Sequence[Answer], to: Sequence[Answer]) -> list[Answer]:
    lengths = {answer.group: answer.length for answer in to}
    made = [
        answer
        for answer in of
        if max(answer.length, lengths.get(answer.group, 0))
        <= MATCH_RATIO * min(answer.length, lengths.get(answer.group, 0))
    ]
    # A handful of questions is no control arm; better said than trained on.
    return made if len(made) >= _MIN_MATCHED else []


def _total_length_matched(of: Sequence[Answer], to: Sequence[Answer], seed: int) -> list[Answer]:
    left = sum(answer.length for answer in to)
    kept: set[str] = set()
    for answer in sorted(of, key=lambda answer: _draw(answer.group, seed)):
        left -= answer.length
        if left < 0:
            break  # to look for one that still fits would be to draw the short ones
        kept.add(answer.group)
    return [answer for answer in of if answer.group in kept]


def _draw(group: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=8).digest()


def own_only(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out records a rewriting job fell back on: what the model said is not in them."""
    return [record for record in records if not record["provenance"]["fell_back"]]


def as_record(answer: Answer, source: str) -> Row:
    """Give an answer as a record."""
    row = {**with_answer(answer.row, answer.response), "source": source}
    if answer.correct is not None:
        row["correct"] = answer.correct
    return row
