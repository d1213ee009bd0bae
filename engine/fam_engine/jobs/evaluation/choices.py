"""Pass 2 of evaluating, where an option is chosen by log-prob: options scored by the scoring job's own pass.

In: the spool of options and one model. Out: the summed loss of each option, in a journal of this model alone. The
prompt is computed once for all its options, and an option's loss has the same bits as `score` gives a record with it
as response. The end of turn does not count: an option is compared as the beginning of an answer, as is usual (`acc`,
`acc_norm` of lm-evaluation-harness).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring import entries


@dataclass(frozen=True)
class Scored:
    """The options of a question, or why they have no scores.

    Attributes:
        position: Of the question.
        nll_sums: Loss of each option over its tokens, nats; None where one could not be computed.
        code: Stable name of the failure; None: there are scores.
        reason: What failed.
    """

    position: int
    nll_sums: list[float] | None
    code: str | None
    reason: str | None


def open_choices(folder: Path, key: dict[str, Any], questions: sqlite3.Connection) -> Journal:
    """Open a model's journal, with the options to be scored.

    Args:
        folder: Of this model and pass alone.
        key: What it belongs to.
        questions: The job's questions.
    """
    journal = Journal(folder, key, entries.SCHEMA)
    if journal.get("filled") is None:
        with journal.commit() as db:
            db.execute("DELETE FROM records")
            db.executemany(
                "INSERT INTO records (position, id, file, line, num_bytes) VALUES (?, ?, ?, ?, ?)",
                _options(questions),
            )
            journal.put("filled", True)
    return journal


def _options(questions: sqlite3.Connection) -> Iterator[tuple[int, str, str, int, int]]:
    """Give a row an option, as the scoring pass wants to know it."""
    for first, name, file, line, choices in questions.execute(
        "SELECT first_entry, id, file, line, choices FROM questions WHERE first_entry IS NOT NULL"
    ):
        for number, choice in enumerate(json.loads(choices)):
            yield first + number, name, file, line, len(choice.encode())


def scored(journal: Journal, questions: sqlite3.Connection) -> Iterator[Scored]:
    """Give every question's scores, in order, once all are there."""
    query = "SELECT nll_sum FROM results WHERE entry >= ? AND entry < ? ORDER BY entry"
    for position, first, choices, file, line in questions.execute(
        "SELECT position, first_entry, choices, file, line FROM questions "
        "WHERE first_entry IS NOT NULL ORDER BY position"
    ):
        limits = (first, first + len(json.loads(choices)))
        sums = [row[0] for row in journal.db.execute(query, limits)]
        if None not in sums:
            yield Scored(position, sums, None, None)
            continue
        code, reason = journal.db.execute(
            "SELECT code, reason FROM quarantine WHERE file = ? AND line = ?", (file, line)
        ).fetchone()
        yield Scored(position, None, code, reason)
