"""Workers on a Ray cluster: a task for each, and one more for the end.

In: a `ScoreConfig`. Out: the files of the job, in a folder that all nodes see. Ray places the processes and starts
them again when a node is lost; who does which part, and what is kept, is told by the folder as with any other
launcher.

Why tasks and not Ray Data: there a part would be a block, and the blocks are Ray's. Small inputs become one block,
which occupies one worker of all; a pool of actors that takes all CPUs leaves none for the tasks that read, and waits
without a word; a checkpoint is kept a block and holds the ids of all rows in memory when resumed. A task that cannot
be placed waits without a word too: so what a cluster can never hold is refused before anything starts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fam_engine.config import ScoreConfig
from fam_engine.errors import FamEngineError, UsageError
from fam_engine.jobs.interrupts import Interrupted, Interrupts
from fam_engine.jobs.journal import STATE_FOLDER, storage_errors
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.progress import Nobody, Progress
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.scoring.sharing.launching import (
    Launch,
    of_a_worker,
    of_one_process,
    worker_died,
)
from fam_engine.jobs.scoring.sharing.worker import run_shard

# Starts after a task's process has died: enough to find a record that kills it (`journal.examine_crash`).
_MAX_RETRIES = 16
_SECONDS_A_LOOK = 1.0
_SECONDS_TO_STOP = 10.0


def run_on_ray(config: ScoreConfig, progress: Progress) -> JobOutcome:
    """Score on a Ray cluster, or go on where an earlier run of the same job stopped.

    The cluster is the one this process is connected to, else that of RAY_ADDRESS, else one on this machine.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; what is done is kept.
    """
    with Interrupts() as interrupts, _connected(progress) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needs = worker_needs(nodes, config)
        num_workers = count_workers(nodes, needs, config.workers)
        # A node that does not see this folder must not begin a job of its own.
        with storage_errors(config.out):
            (config.out / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
        launch = Launch(config.out, num_workers, progress)
        task = ray.remote(_task).options(
            num_cpus=needs.get("CPU", 0),
            num_gpus=needs.get("GPU", 0),
            max_retries=_MAX_RETRIES,
        )
        here = str(Path.cwd())
        work = [task.remote(here, _values(of_a_worker(config))) for _ in range(num_workers)]
        answers = _wait_for(ray, work, launch, interrupts)
        launch.check_done([answer for answer in answers if isinstance(answer, FamEngineError)])
        progress.start("writing", None, "files")
        end = task.remote(here, _values(of_one_process(config)))
        (outcome,) = _wait_for(ray, [end], None, interrupts)
    if isinstance(outcome, FamEngineError):
        raise outcome
    assert isinstance(outcome, JobOutcome)
    return outcome


def worker_needs(nodes: Sequence[Mapping[str, float]], config: ScoreConfig) -> dict[str, float]:
    """Say what a worker occupies: a GPU where there are any and the job may use them, else a CPU."""
    has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    use_gpu = config.device == "cuda" or (config.device == "auto" and has_gpus)
    return {"GPU": 1} if use_gpu else {"CPU": 1}


def count_workers(
    nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float], wanted: int | None
) -> int:
    """Give the number of workers: that asked for, or all a cluster has room for.

    Args:
        nodes: What each node has.
        needs: What a worker occupies.
        wanted: How many were asked for; None: all there is room for.

    Raises:
        UsageError: The cluster will never have room for so many; Ray would wait for ever.
    """
    room = sum(
        int(min(node.get(name, 0) // count for name, count in needs.items())) for node in nodes
    )
    (kind,) = needs
    if room == 0 or room < (wanted or 0):
        raise UsageError(
            f"{wanted or 1} workers need a {kind} each, the Ray cluster has {room}: they would wait for ever",
            code="E_RAY_ROOM",
            hint=f"--workers {room}" if room else "start Ray with what they need",
        )
    return wanted or room


@contextlib.contextmanager
def _connected(progress: Progress) -> Iterator[Any]:
    """Give Ray, connected to a cluster; one that was started here ends here."""
    # Ray would tell its makers of its use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError(
            "Ray is not installed", code="E_RAY_MISSING", hint="pip install 'fam-engine[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    progress.start("starting Ray", None, "")
    try:
        ray.init(logging_level="warning", log_to_driver=False)
    except ConnectionError as error:
        message = f"no Ray cluster answers: {' '.join(str(error).split())}"
        raise UsageError(message, code="E_RAY", hint="check RAY_ADDRESS") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _values(config: ScoreConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _task(folder: str, settings: dict[str, Any]) -> JobOutcome | FamEngineError | None:
    """Work as one worker, or as the process that ends the job; runs where Ray wants it to."""
    try:
        with _seen_here(folder):
            os.chdir(folder)  # paths of settings are relative to where the user is
            config = ScoreConfig.model_validate(settings)
            (config.out / STATE_FOLDER).stat()
        return (run_shard if config.shard else run_score)(config, Nobody())
    except FamEngineError as error:
        return error  # raised, it would be one of Ray's
    except Interrupted:
        return None


@contextlib.contextmanager
def _seen_here(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"`{error.filename}` is not there on node {os.uname().nodename}",
            code="E_RAY_FOLDER",
            where=folder,
            hint="run it in a folder, and with an --out, that all nodes share",
        ) from None


def _wait_for(
    ray: Any,  # noqa: ANN401 - the module
    refs: Sequence[Any],
    launch: Launch | None,
    interrupts: Interrupts,
) -> list[Any]:
    """Give what each task comes to; of one whose process has died for good, the error."""
    waiting = list(refs)
    try:
        while waiting:
            with interrupts.held():  # an exception in Ray's compiled code would come out as another
                _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_SECONDS_A_LOOK)
            if launch:
                launch.look()
    except BaseException:
        for ref in waiting:
            ray.cancel(ref)
        ray.wait(waiting, num_returns=len(waiting), timeout=_SECONDS_TO_STOP)
        raise
    return [_answer(ray, ref) for ref in refs]


def _answer(ray: Any, ref: Any) -> Any:  # noqa: ANN401
    try:
        return ray.get(ref)
    except ray.exceptions.WorkerCrashedError as error:
        return worker_died(" ".join(str(error).split()))
