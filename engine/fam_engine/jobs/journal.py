"""Durable progress of a long job: one SQLite file in the output folder, one lock beside it.

In: rows a job wants to keep, and which batch it is about to run. Out: the same rows after any crash. SQLite's
write-ahead journal carries the durability (a committed batch survives `kill -9`); a log format of our own was
rejected, it would be worse and ours to prove. The key says what the progress belongs to: an equal one resumes, an
unequal one is refused.

The batch in flight is noted before it runs. A process that died in it comes back, finds the note and runs that batch in
halves, then quarters, so that the one record that kills the process is found in a few restarts and left out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from fam_engine.data.files import remove_at_once
from fam_engine.errors import (
    CorruptStateError,
    DeviceError,
    InputError,
    LockedError,
    ModelRefusedError,
    StorageError,
    UsageError,
)

STATE_FOLDER = ".fam-engine"
_DATABASE = "journal.sqlite"
# A record is blamed only after it was alone in this many dead processes: one kill -9 proves nothing.
DEATHS_TO_BLAME = 3
# Of a value that differs so much is shown, beginning a little before the difference; of a hash its first digits.
_LONGEST_SHOWN, _SHOWN_BEFORE = 60, 20
_HASH = re.compile(r'("[0-9a-f]{12})[0-9a-f]{52}"')
# What a file system without locks says: Lustre without `-o flock`, NFS without its lock service.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_LOOKS, _SECONDS_A_LOOK = 50, 0.01

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS in_flight (entry INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS suspects (entry INTEGER PRIMARY KEY, party INTEGER, deaths INTEGER);
CREATE TABLE IF NOT EXISTS quarantine (
    number INTEGER PRIMARY KEY, file TEXT, line INTEGER, offset INTEGER, code TEXT, reason TEXT
);
"""


class Journal:
    """The state of one job in one output folder, held by one process at a time.

    Args:
        out: Output folder; made if absent.
        key: What the progress belongs to; names -> values that JSON can hold.
        schema: SQL that makes the job's own tables.

    Raises:
        LockedError: Another process holds the folder.
        UsageError: The folder holds progress of another job; the message names what differs.
        StorageError: The folder cannot be written.
        CorruptStateError: The saved state does not read back.
    """

    def __init__(self, out: Path, key: dict[str, Any], schema: str) -> None:
        self.folder = out / STATE_FOLDER
        with storage_errors(out):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.folder / "lock", out)
        try:
            with storage_errors(out):
                self.db = _open(self.folder / _DATABASE, _SCHEMA)
                self._begin(key, schema, out)
                self._had_read = self.get("ingested") is not None
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Journal:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file and let the folder go."""
        self.db.close()
        self._let_go()

    def _let_go(self) -> None:
        # Other machines know a holder by its name alone: it must not outlive the work.
        with contextlib.suppress(OSError):
            self._lock.truncate(0)
        self._lock.close()

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Do what comes before anything is computed: reading the input, planning, loading the model.

        If that is refused, the folder is free for other settings: nothing is lost but the reading. A job whose
        input an earlier run has read keeps what it has, whatever is refused when it goes on.
        """
        try:
            yield
        except (InputError, UsageError, DeviceError, ModelRefusedError):
            if not self._had_read:
                self.forget()
            raise

    def forget(self) -> None:
        """Give the folder back to any other job: nothing of this one is left but its lock, held until the end."""
        self.db.close()
        # This first: without it, whatever else a death here leaves belongs to nobody.
        for end in ("", "-wal", "-shm"):
            (self.folder / f"{_DATABASE}{end}").unlink(missing_ok=True)
        for path in list(self.folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                # Workers still touch files in theirs, which keeps folders from being removed file by file.
                remove_at_once(path)

    @contextlib.contextmanager
    def commit(self) -> Iterator[sqlite3.Connection]:
        """Run statements as one transaction: all of them are kept, or none."""
        with storage_errors(self.folder.parent), self.db:
            self.db.rollback()  # what an exception out of nowhere may have left open
            self.db.execute("BEGIN IMMEDIATE")
            yield self.db

    def get(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        """Give a value kept under a name, None if there is none."""
        row = self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, name: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Keep a JSON value under a name; inside `commit` as part of it."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    def finished(self, outputs: Iterable[Path]) -> Any:  # noqa: ANN401 - any JSON value
        """Give what is kept under `finished` if all files are still there; else None.

        A job that has lost one is no longer finished, so that it ends only when all are written again and the
        temporary ones of a run that died at it are gone.
        """
        value = self.get("finished")
        if value is not None and not all(path.is_file() for path in outputs):
            with self.commit():
                self.put("finished", None)
            return None
        return value

    # -- quarantine ------------------------------------------------------------------------------

    def quarantine(self, rows: Iterable[tuple[str, int, int | None, str, str]]) -> None:
        """Keep (file, line, offset, code, reason) of records left out; inside `commit`."""
        self.db.executemany(
            "INSERT INTO quarantine (file, line, offset, code, reason) VALUES (?, ?, ?, ?, ?)", rows
        )

    # -- the batch in flight -----------------------------------------------------------------------

    def take_off(self, entries: Sequence[int]) -> None:
        """Note the entries about to be computed."""
        with self.commit() as db:
            db.execute("DELETE FROM in_flight")
            db.executemany("INSERT INTO in_flight VALUES (?)", ((int(e),) for e in entries))

    def land(self, entries: Sequence[int], *, flying: Sequence[int] = ()) -> None:
        """Note that they came through, others still fly; inside the `commit` that keeps their results."""
        self.db.execute("DELETE FROM in_flight")
        self.db.executemany("INSERT INTO in_flight VALUES (?)", ((int(e),) for e in flying))
        self.db.executemany("DELETE FROM suspects WHERE entry = ?", ((int(e),) for e in entries))

    def examine_crash(self) -> list[int]:
        """Turn a batch a dead process left in flight into suspects, half a batch a party.

        Returns:
            Entries to blame: each was alone in flight when the process died, several times.
        """
        with self.commit() as db:
            flying = [row[0] for row in db.execute("SELECT entry FROM in_flight ORDER BY entry")]
            db.execute("DELETE FROM in_flight")
            if not flying:
                return []
            deaths = 1 + _most_deaths(db, flying) if len(flying) == 1 else 0
            if deaths >= DEATHS_TO_BLAME:
                db.execute("DELETE FROM suspects WHERE entry = ?", (flying[0],))
                return flying
            party = db.execute("SELECT COALESCE(MAX(party), 0) FROM suspects").fetchone()[0]
            half = (len(flying) + 1) // 2
            db.executemany(
                "INSERT OR REPLACE INTO suspects VALUES (?, ?, ?)",
                ((e, party + (1 if i < half else 2), deaths) for i, e in enumerate(flying)),
            )
            return []

    def suspect_parties(self) -> list[list[int]]:
        """Give the groups of entries to be run apart from everything else."""
        parties: dict[int, list[int]] = {}
        for entry, party in self.db.execute("SELECT entry, party FROM suspects ORDER BY entry"):
            parties.setdefault(party, []).append(entry)
        return [parties[party] for party in sorted(parties)]

    @contextlib.contextmanager
    def flights(self) -> Iterator[None]:
        """Compute batches: whatever ends this but the death of the process, nobody in flight is to blame."""
        try:
            yield
        except BaseException:
            self.clear_flight()
            raise

    def clear_flight(self) -> None:
        """Forget the note: the process ends in good order, nobody is to blame."""
        with self.commit() as db:
            db.execute("DELETE FROM in_flight")

    # -- opening -----------------------------------------------------------------------------------

    def _begin(self, key: dict[str, Any], schema: str, out: Path) -> None:
        """Make the job's own tables, once it is sure that no other job has the journal: a refusal leaves no trace."""
        kept = self.get("key")
        if kept is not None:
            check_same_job(kept, key, out)
        self.db.executescript(schema)
        if kept is None:
            with self.commit():
                self.put("key", key)


def check_unclaimed(out: Path, outputs: Iterable[str]) -> None:
    """Make sure that a job may begin in a folder: what it would replace there is its own.

    Every command that names its files itself asks this before any work. Whose the job is, if there is one, the
    journal says when it is opened; a file beside no job is somebody else's, or a copy that was left behind.

    Args:
        out: Output folder; it need not be there.
        outputs: Names of what the job writes into it.

    Raises:
        UsageError: The folder holds no job, but a file of such a name; or it is no folder.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(
            "is a file, expected an output folder",
            code="E_OUT",
            where=str(out),
            hint="choose another --out",
        )
    if (out / STATE_FOLDER / _DATABASE).is_file():
        return
    for path in (out / name for name in outputs):
        if os.path.lexists(path):
            raise UsageError(
                "is there already, and is of no job in this folder",
                code="E_OUT",
                where=str(path),
                hint="choose another --out, or remove it",
            )


@contextlib.contextmanager
def claimed(out: Path, key: dict[str, Any], outputs: Iterable[str]) -> Iterator[Journal]:
    """Hold a folder while the files of a job are written that keeps no progress.

    If that fails, what it has written goes, and a folder that held none before is free for any other job.

    Args:
        out: Output folder; made if absent.
        key: As of `Journal`.
        outputs: Names of what is written.

    Raises:
        FamEngineError: See `Journal`.
    """
    with Journal(out, key, "") as journal, storage_errors(out):
        paths = {out / name for name in outputs}
        earlier = {path for path in paths if path.exists()}
        try:
            yield journal
        except BaseException:
            for path in paths - earlier:
                path.unlink(missing_ok=True)
            if not earlier:
                journal.forget()
            raise


def check_same_job(kept: dict[str, Any], key: dict[str, Any], out: Path) -> None:
    """Make sure that progress kept under one key may be gone on with under another.

    Raises:
        UsageError: They differ; the message names what.
    """
    now = json.loads(json.dumps(key))
    if kept.keys() != now.keys():
        raise UsageError(
            "holds the job of another command, or of another release of fam-engine",
            code="E_RESUME_MISMATCH",
            where=str(out),
            hint="choose another --out",
        )
    for name in sorted(now):
        if kept[name] != now[name]:
            raise UsageError(
                f"holds a job with {_difference(name, kept[name], now[name])}",
                code="E_RESUME_MISMATCH",
                where=str(out),
                hint="choose another --out, or repeat the earlier settings",
            )


def _most_deaths(db: sqlite3.Connection, entries: Sequence[int]) -> int:
    row = db.execute("SELECT deaths FROM suspects WHERE entry = ?", (entries[0],)).fetchone()
    return int(row[0]) if row else 0


def _difference(name: str, kept: object, now: object) -> str:
    """Say where two values differ: which file of a list of hashes, else both, from where they part."""
    if _are_hashes(kept) and _are_hashes(now) and len(kept) == len(now):
        place = next(i for i, pair in enumerate(zip(kept, now, strict=True)) if len(set(pair)) > 1)
        which = f"file {place + 1} of {len(now)}" if len(now) > 1 else "the file"
        return f"other contents of {which} in {name}"
    texts = [_HASH.sub(r'\1"', json.dumps(value)) for value in (kept, now)]
    is_long = max(map(len, texts)) > _LONGEST_SHOWN
    same = next((i for i, pair in enumerate(zip(*texts, strict=False)) if len(set(pair)) > 1), 0)
    start = max(same - _SHOWN_BEFORE, 0) if is_long else 0
    before, after = (_short(text, start) for text in texts)
    return f"{name} = {before}, this one has {after}"


def _are_hashes(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(_HASH.fullmatch(json.dumps(item)) for item in value)


def _short(text: str, start: int) -> str:
    end = start + _LONGEST_SHOWN
    return f"{'...' * (start > 0)}{text[start:end]}{'...' * (len(text) > end)}"


def _take_lock(path: Path, out: Path) -> Any:  # noqa: ANN401 - an open file
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise LockedError(
                f"is in use by {_holder(path)}",
                code="E_LOCKED",
                where=str(out),
                hint="wait for its end",
            ) from None
        if error.errno in _NO_LOCKS:
            raise StorageError(
                f"cannot be locked: {error.strerror}",
                code="E_STORAGE",
                where=str(path),
                hint="choose an --out on a file system with file locks, or mount this one with them (`flock`)",
            ) from error
        raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{_namespace()}")
    file.flush()
    return file


def _holder(path: Path) -> str:
    """Name who holds a lock. It may have taken it this moment, the file still naming the one before."""
    for _ in range(_LOOKS):
        named = read_lock(path.read_text(encoding="utf-8"))
        if named and (not named.is_here or is_alive(named.process)):
            return f"process {named.process} on {named.host}"
        time.sleep(_SECONDS_A_LOOK)
    return "an unknown process"


@dataclass(frozen=True)
class Named:
    """The process that a lock names.

    Attributes:
        process: Its number.
        host: The machine it runs on.
        is_here: Whether the number means a process of this machine, and the same one to us.
    """

    process: int
    host: str
    is_here: bool


def read_lock(text: str) -> Named | None:
    """Read what a lock says; None: nobody holds it."""
    found = re.fullmatch(r"process (\d+) on (\S+)( in namespace \d+)?", text)
    if found is None:
        return None
    is_here = found[2] == socket.gethostname() and found[3] in (None, _namespace())
    return Named(int(found[1]), found[2], is_here)


def _namespace() -> str:
    """Tell containers apart that share a host's name: each numbers its processes by itself."""
    try:
        return f" in namespace {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def _open(path: Path, schema: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # With WAL this survives any death of the process; a power cut may cost the last batches.
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(schema)
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn what the disk says into one line: full, read-only, over quota, damaged."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise StorageError(
            f"cannot be written: {getattr(error, 'strerror', None) or error}",
            code="E_STORAGE",
            where=str(getattr(error, "filename", None) or where),
            hint="free space or fix the permission, then run the same command again",
        ) from error
    except sqlite3.DatabaseError as error:
        raise CorruptStateError(
            f"saved progress does not read back: {error}",
            code="E_STATE",
            where=str(where),
            hint="remove the folder and start again",
        ) from error
