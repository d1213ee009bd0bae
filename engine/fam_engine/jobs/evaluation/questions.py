"""Rows of task files as questions with a known answer.

In: a row of a user's file. Out: a `Question`, or a `RecordError` that says why it cannot be asked or judged. A row
that has no gold answer, or one that makes no sense for its kind, is set aside here: counted among the questions it
would be an answer no model can get right. Whatever response a row has is ignored, so a training file can be a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fam_engine.data.reading import Row
from fam_engine.data.records import Record, detect_form, gold_answer, read_record
from fam_engine.errors import RecordError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.generation.rows import as_question
from fam_engine.jobs.question_files import choices_of, kind_of, texts_of
from fam_engine.measure.answers import TaskKind, guess_kind, judge


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


def read_question(file: DataFile, place: Row, row: Mapping[str, Any], column: str) -> Question:
    """Read a row.

    Args:
        file: Its file.
        place: Where it stands there.
        row: Column name -> value.
        column: The column it asks with, from `generation.rows.find_kind`.

    Raises:
        RecordError: It cannot be asked or judged.
    """
    asked = as_question(row, column)
    record = read_record(asked, detect_form(asked), file=file.name, line=place.line, stem=file.stem)
    # In the question/answer form the answer is in the place of the response.
    answer = gold_answer(row) if column == "question" else record.answer
    choices, tests = choices_of(row), texts_of(row, "tests")
    task = record.task or file.stem
    kind = kind_of(row) or guess_kind(answer, choices, tests)
    _check_gold(kind, answer, choices, tests)
    gold = _gold_option(answer, choices) if kind == "choice" and choices else None
    return Question(record, task, kind, answer, choices, tests, gold)


def _check_gold(
    kind: TaskKind, answer: str | None, choices: Sequence[str], tests: Sequence[str]
) -> None:
    """Make sure that an answer can be wrong, by judging an empty one."""
    verdict = judge("", kind=kind, answer=answer, choices=choices, tests=tests)
    if verdict.correct is not False:
        is_absent = kind != "code" and not (answer and answer.strip())
        hint = " (add the right one as `answer`, or --map answer=COLUMN)" if is_absent else ""
        raise RecordError("E_NO_GOLD", f"cannot be judged as {kind}: {verdict.reason}{hint}")


def _gold_option(answer: str | None, choices: Sequence[str]) -> int:
    """Find the right option: the one that is judged right."""
    if len(choices) < 2 or not all(choices):
        raise RecordError("E_CHOICES", "expected at least two choices, none of them empty")
    right = [
        index
        for index, choice in enumerate(choices)
        if judge(choice, kind="choice", answer=answer, choices=choices).correct
    ]
    if not right:
        raise RecordError("E_NO_GOLD", f"the answer {answer!r} is none of the choices")
    return right[0]
