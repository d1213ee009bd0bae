"""What workers have kept, brought into another journal.

In: the journals of workers that have died or ended. Out: their rows in the one that is open, each once: the heir of a
part takes over what concerns it, the end of the job takes over everything, after which the folder is again that of a
job of one process. Killed in between, it begins anew with the workers that are left. A journal that a power cut has
spoilt stops nobody: what was in it is computed again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fam_engine.data.files import remove_at_once
from fam_engine.errors import InputError, LockedError
from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.peek import kept, peek
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.scoring.entries import AFTER_PASS_ONE
from fam_engine.jobs.scoring.sharing.claims import claimants, file_clock, living_workers
from fam_engine.jobs.scoring.sharing.parts import FOLDER
from fam_engine.jobs.spending import spent_so_far

# Two workers may have computed the same entry. Of a result and none, after a crash that only one of them had, the
# result counts.
_TAKE = """
INSERT INTO results VALUES ({marks}) ON CONFLICT (entry) DO UPDATE SET {columns}
WHERE results.num_response_tokens IS NULL
"""
_ACQUIT = f"""
DELETE FROM quarantine WHERE number IN (
    SELECT q.number FROM quarantine q JOIN records r ON r.position = q.number - {AFTER_PASS_ONE}
    JOIN results s ON s.entry = r.entry WHERE s.num_response_tokens IS NOT NULL
)
"""
# What SQLite says of a journal without its tables, damaged, or none at all; not of a disk that is away for a moment.
_SPOILT = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class _SpoiltError(Exception):
    """A worker's journal does not read back."""


def gather(journal: Journal, progress: Progress) -> None:
    """Take over what the workers of a job have kept.

    Args:
        journal: The job's own.
        progress: Whoever is told of workers whose results are lost.

    Raises:
        LockedError: One of them is still at work.
    """
    parts = journal.folder / FOLDER
    if not parts.is_dir():
        remove_at_once(parts)
        return
    with storage_errors(parts):
        now = file_clock(parts)
    if living := living_workers(parts, now=now):
        raise LockedError(
            f"has {len(living)} at work, process {living[0].process} on {living[0].host} among them",
            code="E_LOCKED",
            where=str(journal.folder.parent),
            hint="wait for the end of all workers",
        )
    for worker in claimants(parts):
        if worker.name not in (journal.get("gathered") or []):
            _gather_one(journal, worker, progress)
    with storage_errors(parts):
        remove_at_once(parts)


def _gather_one(journal: Journal, worker: Path, progress: Progress) -> None:
    def take(theirs: sqlite3.Connection, db: sqlite3.Connection) -> None:
        for table in ("results", "tokens", "quarantine"):
            _take_rows(db, table, _rows(theirs, table))
        db.execute(_ACQUIT)
        with _reading():
            their_spent = kept(theirs, "spent") or (0, 0.0)
        both = zip(spent_so_far(journal), their_spent, strict=True)
        journal.put("spent", [sum(numbers) for numbers in both])
        journal.put("gathered", [*(journal.get("gathered") or []), worker.name])
        # What the job's own process died of before is done: nobody is to blame for it any more.
        for table in ("in_flight", "suspects"):
            db.execute(f"DELETE FROM {table} WHERE entry IN (SELECT entry FROM results)")

    _take_over(journal, worker, progress, take)


def inherit(journal: Journal, worker: Path, entries: Iterable[int], progress: Progress) -> None:
    """Take over what a dead worker knew about some entries: results, and what may have killed it.

    Args:
        journal: The heir's; holds the records of these entries.
        worker: The folder of the dead.
        entries: Those of one part.
        progress: Whoever is told if nothing of it is left.
    """
    wanted = set(entries)

    def take(theirs: sqlite3.Connection, db: sqlite3.Connection) -> None:
        numbers = (row[0] + AFTER_PASS_ONE for row in db.execute("SELECT position FROM records"))
        of_ours = set(numbers)
        left_out = _rows(theirs, "quarantine")
        _take_rows(db, "quarantine", (row for row in left_out if row[0] in of_ours))
        for table in ("results", "tokens", "suspects", "in_flight"):
            ours = (row for row in _rows(theirs, table) if row[0] in wanted)
            _take_rows(db, table, ours)

    _take_over(journal, worker, progress, take)


def _take_over(
    journal: Journal,
    worker: Path,
    progress: Progress,
    take: Callable[[sqlite3.Connection, sqlite3.Connection], None],
) -> None:
    """Bring what a worker knew into a journal, all of it or, where that does not read back, nothing."""
    try:
        with peek(worker) as theirs, journal.commit() as db:
            take(theirs, db)
    except (InputError, _SpoiltError) as error:
        if isinstance(error, InputError) and error.code != "E_NO_JOB":
            raise
        progress.note(f"what worker {worker.name} kept does not read back: it is computed again")


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Tell a worker's journal that is spoilt from one of ours that cannot be written."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Text that is no UTF-8 has no code.
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _SPOILT:
            raise _SpoiltError from error
        raise


def _rows(theirs: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    with _reading():
        yield from theirs.execute(f"SELECT * FROM {table}")


def _take_rows(db: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows that are not there yet; a result also where there was none."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    marks = ", ".join("?" * len(columns))
    query = f"INSERT OR IGNORE INTO {table} VALUES ({marks})"
    if table == "results":
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns)
        query = _TAKE.format(marks=marks, columns=updates)
    db.executemany(query, rows)
