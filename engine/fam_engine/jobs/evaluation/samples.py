"""What each model answered to each question: kept in the job's journal, given back as rows.

In: a model's two finished passes. Out: a `samples` row a question and model, and from these the rows of
`samples.parquet`. A model whose rows are here is done; another run that compares it with others reads them again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from fam_engine.jobs.evaluation.choices import Scored
from fam_engine.jobs.evaluation.models import EvaluatedModel
from fam_engine.jobs.evaluation.texts import Answer
from fam_engine.jobs.journal import Journal
from fam_engine.measure.answers.exact import normalise

# By the option of the smallest loss, or of the smallest loss a byte; names as in lm-evaluation-harness.
ChoiceMetric = Literal["acc", "acc_norm"]

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS samples (
    model TEXT, position INTEGER, correct INTEGER, extracted TEXT, reason TEXT, response TEXT,
    finish_reason TEXT, num_tokens INTEGER, nll_sums TEXT, code TEXT, PRIMARY KEY (model, position)
);
"""
_INSERT = f"INSERT INTO samples VALUES (?{', ?' * 9})"


@dataclass(frozen=True)
class Sample:
    """What a model answered to a question.

    Attributes:
        position: Of the question.
        id: Of the question, as `file` and `line`.
        task: Its task.
        kind: How it is judged.
        method: `generation` or `logprob`.
        asked: The question's own text, without examples.
        prompt: What the model saw.
        answer: The gold answer; for options the right one's text.
        response: What the model wrote; for options the chosen one's text.
        extracted: The final answer found in a written response.
        correct: None where there is no verdict.
        correct_acc: For options: by summed loss.
        correct_acc_norm: For options: by loss a byte.
        reason: One line on the verdict or the failure.
        finish_reason: Why a written response ended.
        num_prompt_tokens: Of the prompt.
        num_response_tokens: Of a written response.
        choices: The options scored.
        choice_nll_sums: Their losses, nats.
        code: Stable name of a failure.
    """

    position: int
    id: str
    file: str
    line: int
    task: str
    kind: str
    method: str
    asked: str
    prompt: str
    answer: str | None
    response: str | None
    extracted: str | None
    correct: bool | None
    correct_acc: bool | None
    correct_acc_norm: bool | None
    reason: str | None
    finish_reason: str | None
    num_prompt_tokens: int
    num_response_tokens: int | None
    choices: list[str] | None
    choice_nll_sums: list[float] | None
    code: str | None


def keep_samples(
    journal: Journal,
    tested: EvaluatedModel,
    written: Iterable[Answer],
    scored: Iterable[Scored],
    took: dict[str, float],
) -> None:
    """Keep all of a model's answers, and that it is done.

    Args:
        journal: Of the job.
        tested: The model.
        written: Its written answers.
        scored: Its scored options.
        took: What it took, for the summary.
    """
    with journal.commit() as db:
        db.executemany(
            _INSERT,
            (
                (
                    tested.key,
                    one.position,
                    one.correct,
                    one.extracted,
                    one.reason,
                    one.response,
                    one.finish_reason,
                    one.num_tokens,
                    None,
                    one.code,
                )
                for one in written
            ),
        )
        db.executemany(
            _INSERT,
            (
                (
                    tested.key,
                    one.position,
                    *(None,) * 2,
                    one.reason,
                    *(None,) * 3,
                    None if one.nll_sums is None else json.dumps(one.nll_sums),
                    one.code,
                )
                for one in scored
            ),
        )
        journal.put(f"done/{tested.key}", took)


def spent(journal: Journal, tested: EvaluatedModel) -> dict[str, float] | None:
    """Give what a model took; None: it is not done."""
    kept: dict[str, float] | None = journal.get(f"done/{tested.key}")
    return kept


def read_samples(
    db: sqlite3.Connection, tested: EvaluatedModel, metric: ChoiceMetric
) -> Iterator[Sample]:
    """Give a model's answers in the order of the questions.

    Args:
        db: Of the job's journal.
        tested: The model.
        metric: What chooses among options.
    """
    query = """
        SELECT q.position, q.id, q.file, q.line, q.task, q.kind, q.asked, q.prompt, q.answer,
               q.choices, q.gold, q.num_prompt_tokens, s.correct, s.extracted, s.reason, s.response,
               s.finish_reason, s.num_tokens, s.nll_sums, s.code, q.first_entry
        FROM samples s JOIN questions q USING (position) WHERE s.model = ? ORDER BY q.position
    """
    cursor = db.execute(query, (tested.key,))
    names = [column[0] for column in cursor.description]
    for values in cursor:
        row = dict(zip(names, values, strict=True))
        yield _scored(row, metric) if row["first_entry"] is not None else _written(row)


def _written(row: dict[str, Any]) -> Sample:
    return _sample(
        row,
        method="generation",
        response=row["response"],
        correct=None if row["correct"] is None else bool(row["correct"]),
        num_response_tokens=row["num_tokens"],
    )


def _scored(row: dict[str, Any], metric: ChoiceMetric) -> Sample:
    choices, gold = json.loads(row["choices"]), row["gold"]
    row["answer"] = choices[gold]
    if row["nll_sums"] is None:
        return _sample(row, method="logprob", choices=choices)
    sums = json.loads(row["nll_sums"])
    picks = {
        "acc": _smallest(sums),
        "acc_norm": _smallest(
            [loss / len(text.encode()) for loss, text in zip(sums, choices, strict=True)]
        ),
    }
    # Choices of the same text are one.
    wanted = normalise(choices[gold])
    right = {name: normalise(choices[pick]) == wanted for name, pick in picks.items()}
    row["reason"] = "the gold option" if right[metric] else "another option"
    return _sample(
        row,
        method="logprob",
        response=choices[picks[metric]],
        correct=right[metric],
        correct_acc=right["acc"],
        correct_acc_norm=right["acc_norm"],
        choices=choices,
        choice_nll_sums=sums,
    )


def _smallest(values: list[float]) -> int:
    return values.index(min(values))


def _sample(row: dict[str, Any], **known: Any) -> Sample:  # noqa: ANN401 - any of its fields
    names = ("position", "id", "file", "line", "task", "kind", "asked", "prompt", "answer")
    later = ("extracted", "reason", "finish_reason", "num_prompt_tokens", "code")
    fields = {name: row[name] for name in (*names, *later)}
    empty = dict.fromkeys(
        (
            "response",
            "correct",
            "correct_acc",
            "correct_acc_norm",
            "num_response_tokens",
            "choices",
            "choice_nll_sums",
        )
    )
    return Sample(**{**empty, **fields, **known})
