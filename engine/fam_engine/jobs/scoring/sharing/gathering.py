"""What workers have kept, brought into another journal.

In: the journals of workers that have died or ended. Out: their rows in the one that is open, each once: the heir of a
part takes over what concerns it, the end of the job takes over everything, after which the folder is again that of a
job of one process. Killed in between, it begins anew with the workers that are left.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fam_engine.errors import LockedError
from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.scoring.entries import AFTER_PASS_ONE
from fam_engine.jobs.scoring.sharing.claims import claimants, living_workers
from fam_engine.jobs.scoring.sharing.parts import FOLDER
from fam_engine.jobs.status.peek import kept, peek

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


def gather(journal: Journal) -> None:
    """Take over what the workers of a job have kept.

    Args:
        journal: The job's own.

    Raises:
        LockedError: One of them is still at work.
    """
    parts = journal.folder / FOLDER
    gone = parts.with_name(f"{FOLDER}.old")
    shutil.rmtree(gone, ignore_errors=True)
    if not parts.is_dir():
        return
    if living := living_workers(parts, now=time.time()):
        raise LockedError(
            f"has {len(living)} at work, process {living[0].process} on {living[0].host} among them",
            code="E_LOCKED",
            where=str(journal.folder.parent),
            hint="wait for the end of all workers",
        )
    for worker in claimants(parts):
        _gather_one(journal, worker)
    with storage_errors(parts):
        parts.rename(gone)
        shutil.rmtree(gone)


def _gather_one(journal: Journal, worker: Path) -> None:
    gathered = journal.get("gathered") or []
    if worker.name in gathered:
        return
    with peek(worker) as theirs, journal.commit() as db:
        _take_rows(db, "results", theirs.execute("SELECT * FROM results"))
        _take_rows(db, "tokens", theirs.execute("SELECT * FROM tokens"))
        _take_rows(db, "quarantine", theirs.execute("SELECT * FROM quarantine"))
        db.execute(_ACQUIT)
        spent = (journal.get("spent") or (0, 0.0), kept(theirs, "spent") or (0, 0.0))
        journal.put("spent", [sum(numbers) for numbers in zip(*spent, strict=True)])
        journal.put("gathered", [*gathered, worker.name])
        # What the job's own process died of before is done: nobody is to blame for it any more.
        for table in ("in_flight", "suspects"):
            db.execute(f"DELETE FROM {table} WHERE entry IN (SELECT entry FROM results)")


def inherit(journal: Journal, worker: Path, entries: Iterable[int]) -> None:
    """Take over what a dead worker knew about some entries: results, and what may have killed it.

    Args:
        journal: The heir's; holds the records of these entries.
        worker: The folder of the dead.
        entries: Those of one part.
    """
    wanted = set(entries)

    def ours(rows: sqlite3.Cursor) -> Iterator[Any]:
        return (row for row in rows if row[0] in wanted)

    with peek(worker) as theirs, journal.commit() as db:
        _take_rows(db, "results", ours(theirs.execute("SELECT * FROM results")))
        _take_rows(db, "tokens", ours(theirs.execute("SELECT * FROM tokens")))
        numbers = (row[0] + AFTER_PASS_ONE for row in db.execute("SELECT position FROM records"))
        of_ours = set(numbers)
        left_out = theirs.execute("SELECT * FROM quarantine")
        _take_rows(db, "quarantine", (row for row in left_out if row[0] in of_ours))
        for table in ("suspects", "in_flight"):
            _take_rows(db, table, ours(theirs.execute(f"SELECT * FROM {table}")))


def _take_rows(db: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows that are not there yet; a result also where there was none."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    marks = ", ".join("?" * len(columns))
    query = f"INSERT OR IGNORE INTO {table} VALUES ({marks})"
    if table == "results":
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns)
        query = _TAKE.format(marks=marks, columns=updates)
    db.executemany(query, rows)
