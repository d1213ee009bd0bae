"""Who does which part: claims that any file system keeps, and signs of life.

In: a job's folder of parts. Out: for a worker, the next part that nobody alive is doing; for others, how many are
done, claimed and given up. `claims/NAME.N` is a symbolic link to the N-th worker that took up NAME: made at once with
what it says, by one of any number of processes, on every file system, also where file locks hold on one machine only.
Each worker has a folder, `workers/WORKER`, with its journal and the file `beat`, which it touches every few seconds.

A worker is dead if the kernel of this machine says so; on another machine or in another container, if it has left in
good order or its beat is older than `STALE_SECONDS` by the clock of the file system, the one clock all have in common.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.peek import Holder, find_holder

_BEAT_SECONDS = 10.0
# Network file systems may tell of a change a minute late.
STALE_SECONDS = 300.0
_CLAIMS, _DONE, _WORKERS, _BEAT, _CLOCK = "claims", "done", "workers", "beat", "clock"


@dataclass(frozen=True)
class Claim:
    """Something a worker is to do.

    Attributes:
        name: What.
        left_by: The folder of the dead worker that had claimed it last; None: it is the first.
    """

    name: str
    left_by: Path | None


class Worker:
    """A process among those that share a job. Use as a context manager.

    Args:
        parts: The job's folder of parts; made if absent.
        key: What the worker's results belong to.
        schema: SQL that makes the tables they go to.
    """

    def __init__(self, parts: Path, key: dict[str, Any], schema: str) -> None:
        self._parts = parts
        # Its own for ever: nobody else writes where it does.
        self.name = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        self.folder = parts / _WORKERS / self.name
        self.journal = Journal(self.folder, key, schema)
        with storage_errors(parts):
            for name in (_CLAIMS, _DONE):
                (parts / name).mkdir(exist_ok=True)
        self._left = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Worker:
        """Show the first sign of life."""
        with storage_errors(self.folder):
            (self.folder / _BEAT).touch()
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave in good order: what it has claimed is free at once."""
        self._left.set()
        self._heart.join()
        with contextlib.suppress(OSError):
            (self.folder / _BEAT).unlink()
        self.journal.__exit__()

    def _beat(self) -> None:
        while not self._left.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a sign that is missing
                (self.folder / _BEAT).touch()

    def claim(self, names: Iterable[str]) -> Claim | None:
        """Take up the first of some things that nobody alive is doing; None: there is none."""
        with storage_errors(self.folder):
            return self._claim(names)

    def _claim(self, names: Iterable[str]) -> Claim | None:
        numbers = _claim_numbers(self._parts)
        beat = self.folder / _BEAT
        beat.touch()
        now = beat.stat().st_mtime
        for name in names:
            number = numbers.get(name, 0)
            owner = _owner(self._parts, name, number) if number else None
            if owner is not None and living_holder(owner, now=now) is not None:
                continue
            try:
                (self._parts / _CLAIMS / f"{name}.{number + 1}").symlink_to(self.name)
            except FileExistsError:
                continue  # another was faster
            return Claim(name, owner)
        return None

    def mark_done(self, name: str) -> None:
        """Say that something is done; its results must be kept already."""
        with storage_errors(self.folder):
            (self._parts / _DONE / name).touch()


def living_holder(worker: Path, *, now: float) -> Holder | None:
    """Give the process of a worker, None if it is dead.

    Args:
        worker: The worker's folder.
        now: Seconds since the epoch, by the clock of the file system.
    """
    holder = find_holder(worker)
    if holder is None or holder.is_sure:
        return holder
    try:
        age = now - (worker / _BEAT).stat().st_mtime
    except FileNotFoundError:  # it has left
        return None
    return replace(holder, is_sure=True) if age < STALE_SECONDS else None


def file_clock(parts: Path) -> float:
    """Give the time by the clock of the file system, seconds since the epoch: machines' own clocks may differ."""
    mark = parts / _CLOCK
    mark.touch()
    return mark.stat().st_mtime


def has_left(worker: Path) -> bool:
    """Whether a worker has ended in good order."""
    return not (worker / _BEAT).exists()


def living_workers(parts: Path, *, now: float) -> list[Holder]:
    """Give the processes that work on a job's parts."""
    folders = (parts / _WORKERS / name for name in sorted(_names(parts / _WORKERS)))
    holders = (living_holder(folder, now=now) for folder in folders)
    return [holder for holder in holders if holder is not None]


def claimants(parts: Path) -> list[Path]:
    """Give the folders of all workers that have ever claimed something."""
    links = (parts / _CLAIMS / name for name in _names(parts / _CLAIMS))
    return [parts / _WORKERS / name for name in sorted({os.readlink(link) for link in links})]


@dataclass(frozen=True)
class PartCounts:
    """How many parts are in which state.

    Attributes:
        done: Computed and kept.
        claimed: Being computed by a worker that is alive.
        stale: Left by a worker that has died or ended; the next one takes them up.
        waiting: Not begun.
    """

    done: int
    claimed: int
    stale: int
    waiting: int


def count_parts(parts: Path, names: Sequence[str], *, now: float) -> PartCounts:
    """Count parts by their state."""
    undone = undone_parts(parts, names)
    numbers = _claim_numbers(parts)
    owners = [_owner(parts, name, numbers[name]) for name in undone if name in numbers]
    claimed = sum(living_holder(owner, now=now) is not None for owner in owners)
    return PartCounts(
        done=len(names) - len(undone),
        claimed=claimed,
        stale=len(owners) - claimed,
        waiting=len(undone) - len(owners),
    )


def undone_parts(parts: Path, names: Iterable[str]) -> list[str]:
    """Give those of some parts that are not marked as done."""
    done = _names(parts / _DONE)
    return [name for name in names if name not in done]


def _claim_numbers(parts: Path) -> dict[str, int]:
    """Give, of all that was ever claimed, how often."""
    numbers: dict[str, int] = {}
    for link in _names(parts / _CLAIMS):
        name, _, number = link.rpartition(".")
        numbers[name] = max(int(number), numbers.get(name, 0))
    return numbers


def _owner(parts: Path, name: str, number: int) -> Path:
    return parts / _WORKERS / os.readlink(parts / _CLAIMS / f"{name}.{number}")


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
