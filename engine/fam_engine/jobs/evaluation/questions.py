"""Rows of task files as questions with a known answer.

In: a row of a user's file. Out: a `Question`, or a `RecordError` that says why it cannot be asked or judged. A row
that has no gold answer, or one that makes no sense for its kind, is set aside here: counted among the questions it
would be an answer no model can get right. Whatever response a row has is ignored, so a training file can be a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from fam_engine.data.reading import Row
from fam_engine.data.records import Record, detect_form, gold_answer, read_record
from fam_engine.errors import RecordError
from fam_engine.jobs.generation.rows import as_question
from fam_engine.jobs.scoring.ingest import DataFile
from fam_engine.measure.answers import TaskKind, guess_kind, judge

KINDS: Final[tuple[TaskKind, ...]] = get_args(TaskKind)


@dataclass(frozen=True)
class Question:
    """A question and what is known of its answer.

    Attributes:
        record: What is asked; its response is a stand-in.
        task: Name of the task it belongs to; the file's stem by default.
        kind: How a response to it is judged.
        answer: The gold answer.
        choices: The options, of a multiple choice.
        tests: Python texts a program must pass, of a programming task.
        gold: Index of the right option; None where there are no options.
    """

    record: Record
    task: str
    kind: TaskKind
    answer: str | None
    choices: tuple[str, ...]
    tests: tuple[str, ...]
    gold: int | None


def read_question(row: Mapping[str, Any], column: str, place: Row, file: DataFile) -> Question:
    """Read a row.

    Args:
        row: Column name -> value.
        column: The column it asks with, from `generation.rows.find_kind`.
        place: Where it stands.
        file: In which file.

    Raises:
        RecordError: It cannot be asked or judged.
    """
    asked = as_question(row, column)
    record = read_record(
        asked, detect_form(asked), file=file.name, line=place.line, stem=file.path.stem
    )
    # In the question/answer form the answer is in the place of the response.
    answer = gold_answer(row) if column == "question" else record.answer
    choices, tests = _texts(row, "choices"), _texts(row, "tests")
    task = record.task or file.path.stem
    kind = _kind(row, answer, choices, tests)
    _check_gold(kind, answer, choices, tests)
    gold = _gold_option(answer, choices) if kind == "choice" and choices else None
    return Question(record, task, kind, answer, choices, tests, gold)


def _texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise RecordError("E_RECORD_TYPE", f"field `{name}` is not a list of texts, none empty")
    return tuple(value)


def _kind(
    row: Mapping[str, Any], answer: str | None, choices: Sequence[str], tests: Sequence[str]
) -> TaskKind:
    named = row.get("kind")
    if named is None:
        return guess_kind(answer, choices, tests)
    if named not in KINDS:
        raise RecordError("E_KIND", f"field `kind` is {named!r}, expected {', '.join(KINDS)}")
    return KINDS[KINDS.index(named)]


def _check_gold(
    kind: TaskKind, answer: str | None, choices: Sequence[str], tests: Sequence[str]
) -> None:
    """Make sure that an answer can be wrong, by judging an empty one."""
    verdict = judge("", kind=kind, answer=answer, choices=choices, tests=tests)
    if verdict.correct is not False:
        raise RecordError("E_NO_GOLD", f"cannot be judged as {kind}: {verdict.reason}")


def _gold_option(answer: str | None, choices: Sequence[str]) -> int:
    """Find the right option: the one that is judged right."""
    if len(choices) < 2:
        raise RecordError("E_CHOICES", "there is one choice, expected at least two")
    right = [
        index
        for index, choice in enumerate(choices)
        if judge(choice, kind="choice", answer=answer, choices=choices).correct
    ]
    if not right:
        raise RecordError("E_NO_GOLD", f"the answer {answer!r} is none of the choices")
    return right[0]
