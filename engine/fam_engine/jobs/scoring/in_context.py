"""Each response once more, after worked examples: right answers to other questions (arXiv 2502.11779).

In: the records of a journal, their texts kept by pass 1. Out: an entry a record. The examples are the next K records
marked correct, cyclic, of K other questions, so every record's are fixed by the file alone. Where there are too few
of them, or the context grows too long, the record has no such entry and its columns stay null, which
is said before anything is computed. So it is with records that use tools or tell the template something of their own,
which pass 1 keeps no texts of: examples and question would need one list of tools.
"""

from __future__ import annotations

import sqlite3
from itertools import islice

import numpy as np
import numpy.typing as npt

from fam_engine.data.tokenizer import TextEncoder
from fam_engine.data.turns import Message, turns_from_json
from fam_engine.errors import RecordError
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
    """
    correct = journal.db.execute(
        "SELECT position, grp FROM records JOIN texts USING (position) WHERE correct ORDER BY position"
    ).fetchall()
    positions = np.array([row[0] for row in correct], np.int64)
    groups = [row[1] for row in correct]
    records = iter(
        journal.db.execute(
            "SELECT position, grp FROM records JOIN texts USING (position) ORDER BY position"
        ).fetchall()
    )
    while chunk := list(islice(records, _CHUNK)):
        with journal.commit() as db:
            for position, group in chunk:
                examples = _next_examples(positions, groups, (position, group), count)
                if len(examples) == count:
                    _add(db, encoder, writer, (position, examples), max_length)
        writer.flush()


def missing_in_context(db: sqlite3.Connection, count: int) -> str | None:
    """Say how many records have no such entry, and why; None where all have one."""
    num_records, num_entries = db.execute(
        "SELECT COUNT(*), COUNT(entry_in_context) FROM records"
    ).fetchone()
    if num_entries == num_records:
        return None
    (known,) = db.execute(
        "SELECT COUNT(DISTINCT grp) FROM records JOIN texts USING (position) WHERE correct"
    ).fetchone()
    return (
        f"in-context scores: none for {num_records - num_entries:,} of {num_records:,} records; they take answers "
        f"marked `correct` to {count} other questions ({known:,} have one), a context that the model can hold "
        "and neither tools nor reasoning nor `chat_template_kwargs` of their own"
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
    return turns_from_json(turns), verbatim, response
