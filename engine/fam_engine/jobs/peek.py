"""A look into a journal that may belong to a running process: its rows, and who holds it.

In: an output folder. Out: a read-only connection; the holder. The lock itself is never tried: for a moment that would
take it, and a job that starts in this moment would be refused. Who holds it is read instead: from the name in the lock
file, checked against the kernel's list of locks where there is one (Linux), so that a process number used anew does
not pass for the job. Of a log that a dead process left SQLite makes its index (`-shm`) anew, as for any reader; what
is kept in the folder stays byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fam_engine.errors import CorruptStateError, InputError
from fam_engine.jobs.journal import STATE_FOLDER, is_alive, read_lock

_LOCKS = Path("/proc/locks")


@dataclass(frozen=True)
class Holder:
    """The process that works in a folder.

    Attributes:
        process: Its number.
        host: The machine it runs on.
        is_sure: Whether it is known to run; on another machine or in another container nobody can tell from here.
    """

    process: int
    host: str
    is_sure: bool


@contextlib.contextmanager
def peek(out: Path) -> Iterator[sqlite3.Connection]:
    """Open a job's journal for reading.

    Raises:
        InputError: The folder holds no job, or cannot be read.
        CorruptStateError: The journal does not read back.
    """
    path = out / STATE_FOLDER / "journal.sqlite"
    if not path.is_file():
        raise InputError(
            "holds no job, expected the --out of score, generate, rewrite, train, eval or experiment",
            code="E_NO_JOB",
            where=str(out),
            hint="check the path",
        )
    try:
        with contextlib.closing(_connect(path)) as db:
            yield db
    except sqlite3.OperationalError as error:
        raise InputError(
            f"cannot be read: {error}",
            code="E_STATUS_READ",
            where=str(path),
            hint="try again in a moment, as the user who runs the job",
        ) from error
    except (sqlite3.DatabaseError, ValueError) as error:
        raise CorruptStateError(
            f"saved progress does not read back: {error}",
            code="E_STATE",
            where=str(out),
            hint="remove the folder and start again",
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    """Connect so that no file appears: without a write-ahead log nobody is writing."""
    is_at_rest = not path.with_name(f"{path.name}-wal").exists()
    query = "immutable=1" if is_at_rest else "mode=ro"
    address = quote(os.fsencode(path.absolute()))  # a folder's name may be no UTF-8
    return sqlite3.connect(f"file:{address}?{query}", uri=True)


def kept(db: sqlite3.Connection, name: str) -> Any:  # noqa: ANN401 - any JSON value
    """Give what a journal keeps under a name, None if nothing."""
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else json.loads(row[0])


def find_holder(out: Path) -> Holder | None:
    """Say which process works in a folder; None: nobody does."""
    path = out / STATE_FOLDER / "lock"
    try:
        text, inode = path.read_text(encoding="utf-8"), path.stat().st_ino
    except OSError:
        return None
    named = read_lock(text)
    if named is None:
        return None
    if not named.is_here:
        return Holder(named.process, named.host, is_sure=False)
    if not is_alive(named.process) or not _has_lock(named.process, inode):
        return None
    return Holder(named.process, named.host, is_sure=True)


def _has_lock(process: int, inode: int) -> bool:
    """Whether the kernel lists the lock as its own; True where it keeps no list."""
    try:
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    pattern = re.compile(rf"FLOCK .* {process} [0-9a-f]+:[0-9a-f]+:{inode} ")
    return any(pattern.search(line) for line in lines)


def last_change(out: Path) -> float:
    """Give when a journal was last written, or a part of a job done, seconds since the epoch."""
    folder = out / STATE_FOLDER
    names = ("journal.sqlite", "journal.sqlite-wal", "parts/done")
    return max(os.stat(folder / name).st_mtime for name in names if (folder / name).exists())
