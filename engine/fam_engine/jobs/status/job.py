"""The state of a job from its folder: running, stopped or finished, how far, and what to do next.

In: an output folder. Out: a `JobStatus`. Nothing is written and no lock is taken, so that it may be asked at any time.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from fam_engine.errors import InputError
from fam_engine.jobs.journal import STATE_FOLDER
from fam_engine.jobs.outputs import OUTPUTS
from fam_engine.jobs.peek import Holder, find_holder, kept, last_change, peek
from fam_engine.jobs.scoring.sharing.claims import PartCounts, count_parts, living_workers
from fam_engine.jobs.scoring.sharing.parts import FOLDER, read_plan
from fam_engine.jobs.status.progress import (
    Progress,
    begun_models,
    command_of,
    in_flight,
    progress_of,
    step_folders,
)
from fam_engine.jobs.training.checkpoint_steps import CHECKPOINTS, checkpoint_steps
from fam_engine.jobs.training.log import NAME as LOG
from fam_engine.jobs.training.log import read_log

State = Literal["running", "unknown", "stopped", "diverged", "finished"]
_GO_ON: Final = "run the same command again: it goes on from"


@dataclass(frozen=True)
class JobStatus:
    """What a folder says about its job.

    Attributes:
        out: The folder.
        command: What runs or ran in it.
        state: `unknown`: another machine is named as the one that works in it, and it is not finished.
        holder: The process that works in it; None: nobody does.
        progress: How far it is.
        quarantined: Records left out so far, by code.
        changed: When progress was last kept, seconds since the epoch.
        advice: What to do.
        workers: The processes that share it, where there are several; `holder` is one of them.
        parts: How many of its parts are in which state; None: it is not cut in parts.
        step: The same of the step an experiment is at.
    """

    out: str
    command: str
    state: State
    holder: Holder | None
    progress: Progress
    quarantined: dict[str, int]
    changed: float
    advice: str
    workers: list[Holder] = field(default_factory=list)
    parts: PartCounts | None = None
    step: JobStatus | None = None


def read_status(out: Path) -> JobStatus:
    """Say how far a job is.

    Raises:
        InputError: The folder holds no job that can be read.
        CorruptStateError: Its saved progress does not read back.
    """
    if out.is_file():
        message, hint = "is a file, expected the folder of a job", "give what was its --out"
        raise InputError(message, code="E_NO_JOB", where=str(out), hint=hint)
    try:
        return _look(out)
    except FileNotFoundError:  # its parts were gathered in this moment: it has none any more
        return _look(out)


def _look(out: Path) -> JobStatus:
    # By the clock of this machine: to know that of the file system something would have to be written.
    parts, now = out / STATE_FOLDER / FOLDER, time.time()
    workers = living_workers(parts, now=now)
    holder = find_holder(out)
    if holder is None or not holder.is_sure:
        holder = next(iter(workers), holder)
    plan = read_plan(parts)
    with peek(out) as db:
        command = command_of(db, out)
        counts = None if plan is None else count_parts(parts, plan.names(), now=now)
        state = _state(command, db, out, holder)
        return JobStatus(
            out=str(out),
            command=command,
            state=state,
            holder=holder,
            progress=progress_of(command, db, out),
            quarantined=_quarantined(command, db),
            changed=last_change(out),
            advice=_advice(
                state,
                holder,
                out,
                go_on=_go_on(command, out),
                num_in_flight=in_flight(db),
                parts=counts,
            ),
            workers=workers,
            parts=counts,
            step=_current_step(out) if command == "experiment" else None,
        )


def _state(command: str, db: sqlite3.Connection, out: Path, holder: Holder | None) -> State:
    if holder is not None and holder.is_sure:
        return "running"
    if _is_finished(command, db, out):
        return "finished"
    if holder is not None:
        return "unknown"
    has_diverged = command == "train" and any("diverged" in line for line in read_log(out / LOG))
    return "diverged" if has_diverged else "stopped"


def _is_finished(command: str, db: sqlite3.Connection, out: Path) -> bool:
    if command == "experiment":
        results = out / "results.json"
        notes = [folder / "step.json" for folder in step_folders(out)]
        # A changed study has begun steps, or finished ones that the results do not know.
        return results.is_file() and all(
            note.is_file() and note.stat().st_mtime <= results.stat().st_mtime for note in notes
        )
    if not all((out / name).is_file() for name in OUTPUTS[command]):
        return False
    # An evaluation goes on with more adapters whenever they are given.
    return not begun_models(out) if command == "eval" else kept(db, "finished") is not None


def _quarantined(command: str, db: sqlite3.Connection) -> dict[str, int]:
    counts = Counter(dict(db.execute("SELECT code, COUNT(*) FROM quarantine GROUP BY code")))
    if command == "eval":
        query = "SELECT code, COUNT(DISTINCT position) FROM samples WHERE code IS NOT NULL GROUP BY code"
        counts.update(dict(db.execute(query)))
    return dict(sorted(counts.items()))


def _go_on(command: str, out: Path) -> str:
    """Say how a job goes on: one that trains from a checkpoint, any other from all it has done."""
    if command != "train":
        return f"{_GO_ON} here"
    newest = next(iter(checkpoint_steps(out / CHECKPOINTS)), None)
    if newest is None:
        return "run the same command again: it begins anew, there is no checkpoint yet"
    return f"{_GO_ON} step {newest}, its newest checkpoint"


def _advice(
    state: State,
    holder: Holder | None,
    out: Path,
    *,
    go_on: str,
    num_in_flight: int,
    parts: PartCounts | None,
) -> str:
    if parts is not None and state in ("running", "stopped"):
        return _advice_on_parts(state, parts, go_on)
    if state == "running":
        assert holder is not None
        return f"wait for its end, or stop it with `kill {holder.process}`: what is done is kept"
    if state == "unknown":
        assert holder is not None
        return f"see on {holder.host} whether process {holder.process} still runs; if not, {go_on}"
    if state == "finished":
        quarantine = out / "quarantine.jsonl"
        is_empty = not quarantine.is_file() or quarantine.stat().st_size == 0
        return "nothing" if is_empty else "see quarantine.jsonl for what was left out"
    if state == "diverged":
        return "train into another --out with a lower --learning-rate; checkpoints are kept"
    died = f"its process died with {num_in_flight} records in flight; " if num_in_flight else ""
    return f"{died}{go_on}"


def _advice_on_parts(state: State, parts: PartCounts, go_on: str) -> str:
    if state == "running":
        return "wait for the end of its workers; what is done is kept, also of one that is stopped"
    if parts.claimed + parts.stale + parts.waiting == 0:
        return "run the command without --shard: it ends the job"
    return f"{go_on}; with or without --shard, with any number of workers"


def _current_step(out: Path) -> JobStatus | None:
    """Give the step that is begun and not finished, where it is a job of its own."""
    for folder in step_folders(out):
        has_journal = (folder / STATE_FOLDER / "journal.sqlite").is_file()
        if has_journal and not (folder / "step.json").is_file():
            return read_status(folder)
    return None


def as_values(status: JobStatus) -> dict[str, Any]:
    """Give a status as values for JSON."""
    fields = dict(vars(status))
    fields["holder"] = None if status.holder is None else vars(status.holder)
    fields["workers"] = [vars(worker) for worker in status.workers]
    fields["parts"] = None if status.parts is None else vars(status.parts)
    fields["progress"] = vars(status.progress)
    fields["step"] = None if status.step is None else as_values(status.step)
    return fields
