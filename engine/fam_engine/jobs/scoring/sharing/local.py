"""Workers on this machine: a process for each GPU, or as many as asked for on the CPU.

In: a `ScoreConfig`. Out: the files of the job. Each worker is started anew, since neither threads nor a GPU survive a
fork, and holds one end of a pipe whose closing tells it to stop, so that no worker outlives whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import time
from collections.abc import Iterator, Sequence

import torch

from fam_engine.config import ScoreConfig
from fam_engine.data.children import how_it_ended, start_child, stop_children
from fam_engine.errors import FamEngineError, UsageError
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.scoring.sharing import local_worker
from fam_engine.jobs.scoring.sharing.launching import (
    Launch,
    of_a_worker,
    of_one_process,
    worker_died,
)

_SECONDS_A_LOOK = 0.2
# A worker that was told to stop does so between two batches, or after `interrupts.GRACE_SECONDS`.
_SECONDS_TO_STOP = 10.0

_OUR_STDERR = 2

Child = subprocess.Popen[bytes]


def run_local(config: ScoreConfig, progress: Progress) -> JobOutcome:
    """Score on several processes of this machine, or go on where an earlier run of the same job stopped.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; what is done is kept.
    """
    num_workers = count_workers(config)
    num_threads = num_workers * torch.get_num_threads()
    num_cores = os.cpu_count() or 1
    if num_threads > num_cores:
        progress.note(
            f"{num_workers} workers have {num_threads} threads on {num_cores} cores; with "
            f"OMP_NUM_THREADS={max(num_cores // num_workers, 1)} they do not get in each other's way"
        )
    launch = Launch(config.out, num_workers, progress)
    with Interrupts() as interrupts, _started(config, num_workers) as children:
        while any(child.poll() is None for child in children):
            launch.look()
            interrupts.check()
            time.sleep(_SECONDS_A_LOOK)
        failures = [_failure(child) for child in children if child.returncode]
    launch.check_done(failures)
    return run_score(of_one_process(config), progress)


def count_workers(config: ScoreConfig) -> int:
    """Give the number of processes.

    Raises:
        UsageError: There are not as many GPUs, or none and no number was asked for.
    """
    num_gpus = _num_gpus(config)
    if num_gpus == 0 and config.workers is None:
        raise UsageError(
            "there is no GPU to go by, expected a number of workers",
            code="E_WORKERS",
            hint="add --workers N",
        )
    if 0 < num_gpus < (config.workers or 0):
        raise UsageError(
            f"{config.workers} workers were asked for, this machine has {num_gpus} GPUs",
            code="E_WORKERS",
            hint=f"--workers {num_gpus}, or --device cpu",
        )
    return config.workers or num_gpus


def _num_gpus(config: ScoreConfig) -> int:
    return 0 if config.device == "cpu" else torch.cuda.device_count()


@contextlib.contextmanager
def _started(config: ScoreConfig, num_workers: int) -> Iterator[Sequence[Child]]:
    """Start the workers; end those that are left when this ends."""
    settings = json.dumps(of_a_worker(config).model_dump(mode="json"))
    children: list[Child] = []
    try:
        for number in range(num_workers):
            gpu = _gpu_name(number) if _num_gpus(config) else ""
            threads = torch.get_num_threads()
            child = start_child(local_worker.__name__, threads, gpu, stderr=_OUR_STDERR)
            children.append(child)
            assert child.stdin is not None
            child.stdin.write(f"{settings}\n".encode())
            child.stdin.flush()
        yield children
    finally:
        stop_children(children, _SECONDS_TO_STOP)
        for child in children:
            assert child.stdout is not None
            child.stdout.close()


def _gpu_name(number: int) -> str:
    """Give what the number-th GPU this process sees is called in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number] if visible else str(number)


def _failure(child: Child) -> FamEngineError:
    assert child.stdout is not None
    told = child.stdout.read()
    if told:
        error = pickle.loads(told)
        assert isinstance(error, FamEngineError)
        return error
    return worker_died(how_it_ended(child.returncode))
