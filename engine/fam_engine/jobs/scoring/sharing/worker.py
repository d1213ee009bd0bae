"""The job of one worker: parts claimed one after the other, until none of its shard is left.

In: a `ScoreConfig` with a shard. Out: results in the worker's journal, and parts marked as done. The worker that is
first reads the input for all. One that finds nothing to claim waits for those who are at it, so that a part whose
worker dies is taken up while anybody is left.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from fam_engine._rust_tokenize import Spool
from fam_engine.config import ScoreConfig
from fam_engine.data.packing import Entries
from fam_engine.errors import LockedError, StorageError
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import STATE_FOLDER, check_same_job, storage_errors
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.peek import peek
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.running import load_told
from fam_engine.jobs.scoring.entries import SCHEMA, EntryScorer, remaining_entries
from fam_engine.jobs.scoring.job import check_folder
from fam_engine.jobs.scoring.prepare import prepared
from fam_engine.jobs.scoring.run_key import worker_key
from fam_engine.jobs.scoring.sharing.claims import Claim, Worker, has_left, undone_parts
from fam_engine.jobs.scoring.sharing.gathering import inherit
from fam_engine.jobs.scoring.sharing.parts import FOLDER, PartPlan, read_plan, write_plan
from fam_engine.jobs.sources import Sources, find_sources, tokens_per_batch
from fam_engine.jobs.spending import Spending

READING = "reading"
_SECONDS_A_LOOK = 1.0


def run_shard(config: ScoreConfig, progress: Progress) -> JobOutcome:
    """Do what is open of a shard.

    Returns:
        How many parts the shard and the job have, and how many of them are done.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; what is done is kept.
    """
    assert config.shard is not None
    check_folder(config)
    sources = find_sources(config, config.data, config.adapter)
    key = worker_key(config, sources)
    parts = config.out / STATE_FOLDER / FOLDER
    with Interrupts() as interrupts, Worker(parts, key, SCHEMA) as worker:
        plan = _planned(config, sources, worker, progress, interrupts)
        check_same_job({"files": plan.files, **plan.key}, {**plan.key, **key}, config.out)
        names = plan.names(config.shard)
        if undone_parts(parts, names):
            _Work(config, sources, worker, plan, progress, interrupts).run(names)
        everything = plan.names()
        done = len(everything) - len(undone_parts(parts, everything))
    return JobOutcome(
        {"shard": config.shard, "shard_parts": len(names), "parts": len(plan), "done": done}, 0
    )


def _planned(
    config: ScoreConfig,
    sources: Sources,
    worker: Worker,
    progress: Progress,
    interrupts: Interrupts,
) -> PartPlan:
    """Give the parts of the job, once somebody has read its input."""
    parts = config.out / STATE_FOLDER / FOLDER
    progress.start("waiting for the input to be read", None, "")
    claim: Claim | None = None
    while (plan := read_plan(parts)) is None:
        claim = claim or _claim_reading(worker)
        if claim is None:
            _wait(interrupts)
            continue
        try:
            _read(config, sources, parts, progress, interrupts)
        except LockedError:
            if not _is_held_by_a_reader(worker, claim):
                raise
            _wait(interrupts)
    return plan


def _claim_reading(worker: Worker) -> Claim | None:
    """Claim the reading of the input.

    Who refuses the input gives back the job's folder, those of waiting workers with it. They read too: so each tells
    its user what is wrong.
    """
    try:
        return worker.claim([READING])
    except StorageError:
        if worker.folder.exists():
            raise
        return Claim(READING, None)


def _read(
    config: ScoreConfig,
    sources: Sources,
    parts: Path,
    progress: Progress,
    interrupts: Interrupts,
) -> None:
    with prepared(config, config.out, progress, interrupts) as (journal, spool, _, _):
        key, entries = journal.get("key"), remaining_entries(journal, spool)
    # The job's journal is closed, and from here on only read, until all workers are gone.
    files = [[file.name, file.path.stat().st_size] for file in sources.files]
    with storage_errors(config.out):
        write_plan(parts, spool, entries, key, files)


def _wait(interrupts: Interrupts) -> None:
    time.sleep(_SECONDS_A_LOOK)
    interrupts.check()


def _is_held_by_a_reader(worker: Worker, claim: Claim) -> bool:
    """Whether a job that is locked is so by another worker: one that refuses the input, or was only thought dead."""
    if not worker.folder.exists():
        return True
    return claim.left_by is not None and not has_left(claim.left_by)


class _Work:
    """A loaded model, and the parts it goes through."""

    def __init__(
        self,
        config: ScoreConfig,
        sources: Sources,
        worker: Worker,
        plan: PartPlan,
        progress: Progress,
        interrupts: Interrupts,
    ) -> None:
        decoder = load_told(config, sources, progress)
        self._out = config.out
        self._worker = worker
        self._plan = plan
        self._progress = progress
        self._interrupts = interrupts
        self._budget = tokens_per_batch(config.max_tokens_per_batch, decoder)
        spool = Spool.open(str(config.out / STATE_FOLDER / "spool"))
        self._scorer = EntryScorer(decoder, worker.journal, spool, keep_tokens=config.tokens)
        self._record = spool.index()["record"]

    def run(self, names: list[str]) -> None:
        """Do parts until all are done, by whomever."""
        self._progress.start("scoring", len(names), "parts")
        num_seen = 0
        while undone := undone_parts(self._plan.folder, names):
            self._progress.advance(len(names) - len(undone) - num_seen)
            num_seen = len(names) - len(undone)
            claim = self._worker.claim(undone)
            if claim is None:
                _wait(self._interrupts)
            else:
                self._do(claim)

    def _do(self, claim: Claim) -> None:
        entries = self._plan.entries(claim.name)
        self._copy_records(entries)
        if claim.left_by is not None:
            inherit(self._worker.journal, claim.left_by, entries.tolist(), self._progress)
        with Spending(self._worker.journal) as spending:

            def advance(num_tokens: int) -> None:
                spending.add(num_tokens)
                self._interrupts.check()

            self._scorer.run(self._budget, advance, entries)
        self._worker.mark_done(claim.name)

    def _copy_records(self, entries: Entries) -> None:
        """Bring what is known of a part's records into the worker's journal, where scoring looks it up."""
        positions = np.unique(self._record[entries]).tolist()
        select, insert = (
            "SELECT position, file, line, num_bytes FROM records WHERE position = ?",
            "INSERT OR IGNORE INTO records (position, file, line, num_bytes) VALUES (?, ?, ?, ?)",
        )
        with peek(self._out) as job, self._worker.journal.commit() as db:
            rows = (job.execute(select, (position,)).fetchone() for position in positions)
            db.executemany(insert, rows)
