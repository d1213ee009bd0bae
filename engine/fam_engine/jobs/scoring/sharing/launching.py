"""What launchers have in common: the settings of what they start, how far it is, and whether all of it is done.

In: a `ScoreConfig` with a launcher. Out: settings of a worker and of the end; what to tell the user meanwhile. A
launcher only starts processes: what they do is what `--shard 1/1` and the command without it do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fam_engine.config import ScoreConfig
from fam_engine.errors import DeviceError, FamEngineError
from fam_engine.jobs.journal import STATE_FOLDER
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.scoring.sharing.claims import undone_parts
from fam_engine.jobs.scoring.sharing.parts import FOLDER, PartPlan, read_plan


def of_one_process(config: ScoreConfig) -> ScoreConfig:
    """Give the settings of the process that ends the job."""
    return config.model_copy(update={"launcher": None, "workers": None})


def of_a_worker(config: ScoreConfig) -> ScoreConfig:
    """Give the settings of each worker: all parts are for all."""
    return of_one_process(config).model_copy(update={"shard": "1/1"})


class Launch:
    """Some workers, watched from outside.

    Args:
        out: The job's folder.
        num_workers: How many there are.
        progress: Whoever wants to know how far they are.
    """

    def __init__(self, out: Path, num_workers: int, progress: Progress) -> None:
        self._parts = out / STATE_FOLDER / FOLDER
        self._num_workers = num_workers
        self._progress = progress
        self._plan: PartPlan | None = None
        self._num_seen = 0
        progress.start(f"reading, on 1 of {num_workers} workers", None, "")

    def look(self) -> None:
        """Tell what has been done since the last look."""
        if self._plan is None:
            self._plan = read_plan(self._parts)
            if self._plan is None:
                return
            label = f"scoring on {self._num_workers} workers"
            self._progress.start(label, len(self._plan), "parts")
        num_done = len(self._plan) - self._num_undone(self._plan)
        self._progress.advance(num_done - self._num_seen)
        self._num_seen = num_done

    def _num_undone(self, plan: PartPlan) -> int:
        return len(undone_parts(self._parts, plan.names()))

    def check_done(self, failures: Sequence[FamEngineError]) -> None:
        """Make sure that all parts are done once all workers have ended.

        Args:
            failures: Of workers.

        Raises:
            FamEngineError: The first failure, where parts are left.
        """
        plan = read_plan(self._parts)
        num_undone = None if plan is None else self._num_undone(plan)
        if num_undone != 0 and failures:
            raise failures[0]
        for failure in failures:  # the others did its parts
            self._progress.note(f"a worker failed and others did its parts: {failure}")


def worker_died(how: str) -> DeviceError:
    """Give the error of a worker that ended without a word."""
    return DeviceError(
        f"a worker died: {how}",
        code="E_WORKER_DIED",
        hint="run the same command again: it goes on from here, and finds a record that kills it",
    )
