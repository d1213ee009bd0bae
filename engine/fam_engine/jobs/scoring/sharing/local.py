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

import torch

from fam_engine.config import ScoreConfig
from fam_engine.data.children import how_it_ended, workers
from fam_engine.errors import FamEngineError, UsageError
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.running import note_about_threads
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

Child = subprocess.Popen[bytes]


def run_local(config: ScoreConfig, progress: Progress) -> JobOutcome:
    """Score on several processes of this machine, or go on where an earlier run of the same job stopped.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; what is done is kept.
    """
    num_workers = count_workers(config)
    note_about_threads(num_workers, progress)
    launch = Launch(config.out, num_workers, progress)
    with (
        Interrupts() as interrupts,
        contextlib.ExitStack() as outputs,  # closed once the workers have ended
        workers(
            local_worker.__name__,
            _arguments(config, num_workers),
            json.dumps(of_a_worker(config).model_dump(mode="json")),
            seconds=_SECONDS_TO_STOP,
        ) as children,
    ):
        for child in children:
            assert child.stdout is not None
            outputs.enter_context(child.stdout)
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


def _arguments(config: ScoreConfig, num_workers: int) -> list[tuple[object, ...]]:
    """Give what each worker is told beside the settings."""
    has_gpus, num_threads = _num_gpus(config) > 0, torch.get_num_threads()
    return [(num_threads, _gpu_name(n) if has_gpus else "") for n in range(num_workers)]


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
