"""Questions of a task, to train on and to be tested by, from files or generated.

In: a `TaskSettings`, or the file of the variant the training questions come from. Out: rows of JSON Lines: a question
in its own form with its labels, no response. Training questions that are also test questions are left out, so that no
task can leak into its own test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fam_engine.data.reading import check_file, data_stem, read_rows
from fam_engine.data.records import Record, detect_form, read_record
from fam_engine.embedded.problems import Problem, generate
from fam_engine.errors import InputError, RecordError
from fam_engine.jobs.experiment.config import TaskSettings
from fam_engine.jobs.generation.rows import as_question, find_kind
from fam_engine.jobs.question_files import texts_of
from fam_engine.jobs.references import find_reference
from fam_engine.jobs.selection.overlap import asked_in, fingerprint

# Test seeds lie this far above those trained on, so that the two never meet.
_TEST_OFFSET = 500_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        row: Its columns in its own form, with its labels; no response.
        asked: What the user says in it, to know it again in another file.
    """

    row: Row
    asked: str

    @property
    def name(self) -> bytes:
        """Name it by its words and signs."""
        return fingerprint(self.asked)


def generated_problems(task: TaskSettings, *, for_test: bool) -> list[Problem]:
    """Generate a task's problems, its skills in turn."""
    first = task.first_seed + (_TEST_OFFSET if for_test else 0)
    count = task.num_test if for_test else task.num_train
    return [generate(task.skills[i % len(task.skills)], first + i) for i in range(count)]


def problem_row(problem: Problem, number: int) -> Row:
    """Give a generated problem as a question."""
    return {
        "id": f"{problem.skill}/{number}",
        "prompt": f"{problem.question}\n",
        "answer": str(problem.gold),
        "skill": problem.skill,
    }


def test_questions(name: str, task: TaskSettings, limit: int | None) -> Iterator[Row]:
    """Give a task's test questions as rows of a task file."""
    if task.skills:
        problems = generated_problems(task, for_test=True)[:limit]
        for number, problem in enumerate(problems):
            yield {**problem_row(problem, number), "task": name, "kind": task.kind or "math"}
        return
    assert task.test is not None
    for count, question in enumerate(read_questions(check_file(task.test), gold=True)):
        if limit is not None and count == limit:
            return
        row = {**question.row, "task": name}
        if task.kind is not None:
            row["kind"] = task.kind
        yield row


def training_questions(
    task: TaskSettings, file: Path | None, taken: set[bytes], limit: int | None
) -> tuple[list[Row], dict[str, int]]:
    """Give the questions a task trains on.

    Args:
        task: The task.
        file: Records of the variant they come from; None: generated.
        taken: Names of the test questions.
        limit: Most questions.

    Returns:
        The rows, each with its `group`; and counts: `read`, `in_test`, `repeated`.
    """
    if file is None:
        problems = generated_problems(task, for_test=False)
        rows = [problem_row(problem, number) for number, problem in enumerate(problems)]
        found = [Question(row, row["prompt"]) for row in rows]
    else:
        found = list(read_questions(file))
    counts = {"read": len(found), "in_test": 0, "repeated": 0}
    kept: list[Row] = []
    seen: set[bytes] = set()
    for question in found:
        if question.name in taken:
            counts["in_test"] += 1
        elif question.name in seen:
            counts["repeated"] += 1
        elif limit is None or len(kept) < limit:
            seen.add(question.name)
            row = {**question.row, "group": f"q{len(kept)}"}
            kept.append(row if task.kind is None else {**row, "kind": task.kind})
    if not kept:
        raise InputError(
            f"leaves no question to train on: of {counts['read']}, {counts['in_test']} are also "
            "test questions",
            code="E_STUDY_EMPTY",
            where=str(file) if file else "generated task",
        )
    return kept, counts


def read_questions(file: Path, *, gold: bool = False) -> Iterator[Question]:
    """Read a file's questions; rows that cannot be read are left out.

    Args:
        file: Records of any form.
        gold: Whether the `answer` of a question/answer row is the gold answer; else it is a response, whose
            final answer is the gold answer.
    """
    return (question for question, _, _ in read_answers(file, gold=gold))


def read_answers(
    file: Path, *, gold: bool = False
) -> Iterator[tuple[Question, str | None, bool | None]]:
    """Read a file's questions with the response and the `correct` of each row."""
    kind: str | None = None
    for place in read_rows(file):
        if place.columns is None:
            continue
        try:
            kind = kind or find_kind(place.columns)
            bare = as_question(place.columns, kind)
            said = asked_in(bare)
            row = _question_row(bare, place.columns, kind, gold=gold)
        except RecordError:
            continue
        correct = place.columns.get("correct")
        response = _response(place.columns, file, place.line)
        yield Question(row, said), response, correct if isinstance(correct, bool) else None


def evenly_spaced(text: str) -> str:
    """Give a text with one space for any blanks: by this a question finds its answers in another file."""
    return " ".join(text.split())


def _question_row(bare: Row, columns: Mapping[str, Any], kind: str, *, gold: bool) -> Row:
    row = {name: value for name, value in bare.items() if name not in ("response", "output")}
    if kind == "question":
        row.pop("answer")
        if gold:
            row["answer"] = columns.get("answer")
        elif (final := _final_answer(columns)) is not None:
            row["answer"] = final
    if columns.get("kind") is not None:
        row["kind"] = columns["kind"]
    return row


def _final_answer(columns: Mapping[str, Any]) -> str | None:
    """Give the final answer of a question/answer row, whose `answer` is a response; None where it has none to trust."""
    told = columns.get("answer")
    if not isinstance(told, str) or columns.get("correct") is False:
        return None
    reference = find_reference(told, None, texts_of(columns, "choices"), ())
    return reference.answer if reference else None


def _response(columns: Mapping[str, Any], file: Path, line: int) -> str | None:
    try:
        record: Record = read_record(
            columns, detect_form(columns), file=file.name, line=line, stem=data_stem(file)
        )
    except RecordError:
        return None
    return record.response


def load_rows(path: Path) -> list[Row]:
    """Read JSON Lines of a step."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
