"""Each response once more, after worked examples: right answers to other questions (arXiv 2502.11779).

In: the records of a journal, their texts kept by pass 1. Out: an entry a record. The examples are the next K records
marked correct, cyclic, of K other questions, so every record's are fixed by the file alone. Where there are too few
of them, or the context grows too long, the record has no such entry and its columns stay null; a job where that is so of
every record is refused.
"""

from __future__ import annotations

import json
import sqlite3
from itertools import islice

import numpy as np
import numpy.typing as npt

from fam_engine.data.records import Message
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError, RecordError
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring.spooling import IN_CONTEXT, EntryWriter

_CHUNK = 512


def add_in_context(
    journal: Journal, encoder: TextEncoder, writer: EntryWriter, *, count: int, max_length: int
) -> None:
    """Add the entries.

    Args:
        journal: Holds records and texts; gets the entries' numbers.
        encoder: Text to ids.
        writer: The spool.
        count: Number of examples, K.
        max_length: Longest sequence the model takes, tokens.

    Raises:
        InputError: Not one record gets an entry.
    """
    correct = journal.db.execute(
        "SELECT position, grp FROM records WHERE correct ORDER BY position"
    ).fetchall()
    positions = np.array([row[0] for row in correct], np.int64)
    groups = [row[1] for row in correct]
    records = iter(
        journal.db.execute("SELECT position, grp FROM records ORDER BY position").fetchall()
    )
    while chunk := list(islice(records, _CHUNK)):
        with journal.commit() as db:
            for position, group in chunk:
                examples = _next_examples(positions, groups, (position, group), count)
                if len(examples) == count:
                    _add(db, encoder, writer, (position, examples), max_length)
        writer.flush()
    _check_some(journal.db, count)


def _check_some(db: sqlite3.Connection, count: int) -> None:
    """Refuse a job whose columns would all be null: whoever asked for them would find out at its end."""
    if db.execute("SELECT 1 FROM records WHERE entry_in_context IS NOT NULL LIMIT 1").fetchone():
        return
    (known,) = db.execute("SELECT COUNT(DISTINCT grp) FROM records WHERE correct").fetchone()
    raise InputError(
        f"not one record can be scored after {count} answers to other questions: {known:,} questions have an answer "
        "whose `correct` is true, or what comes together is too long for the model",
        code="E_IN_CONTEXT",
        hint="say which answers are right, or leave --in-context out",
    )


def _add(
    db: sqlite3.Connection,
    encoder: TextEncoder,
    writer: EntryWriter,
    record: tuple[int, list[int]],
    max_length: int,
) -> None:
    """Add the entry of one (position, examples)."""
    position, examples = record
    turns: list[Message] = []
    verbatim = ""
    for example in examples:
        context, before, response = _texts(db, example)
        turns += [*context, Message("assistant", response)]
        verbatim += f"{before}{response}\n\n"
    context, before, response = _texts(db, position)
    try:
        ids = encoder.encode_context([*turns, *context], verbatim + before)
    except RecordError:
        return
    response_ids, _ = encoder.encode_batch(
        [response], parse_special=encoder.parse_special, continuation=True
    )
    if len(ids) + len(response_ids) - 1 > max_length:
        return
    entry = writer.add((position, IN_CONTEXT), ids, response_ids)
    db.execute("UPDATE records SET entry_in_context = ? WHERE position = ?", (entry, position))


def _next_examples(
    positions: npt.NDArray[np.int64], groups: list[str], record: tuple[int, str], count: int
) -> list[int]:
    """Give the next right answers to other questions than a (position, group)'s, one a question."""
    position, group = record
    start = int(np.searchsorted(positions, position + 1))
    chosen: list[int] = []
    used = {group}
    for step in range(len(groups)):
        index = (start + step) % len(groups)
        if groups[index] not in used:
            used.add(groups[index])
            chosen.append(int(positions[index]))
            if len(chosen) == count:
                break
    return chosen


def _texts(db: sqlite3.Connection, position: int) -> tuple[list[Message], str, str]:
    turns, verbatim, response = db.execute(
        "SELECT context, verbatim, response FROM texts WHERE position = ?", (position,)
    ).fetchone()
    return [Message(role, content) for role, content in json.loads(turns)], verbatim, response
