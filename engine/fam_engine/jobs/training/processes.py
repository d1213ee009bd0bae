"""Training by several processes of this machine, `--nproc`: one for each GPU, or so many on the CPU.

In: a `TrainConfig`. Out: the files of the job. This process computes nothing: it starts the others, passes on what the
first of them says, and watches. When one dies all end, and what its user is told is what happened to that one: the
survivors only know that somebody is gone, and those that wait on a GPU not even that. torchrun, which also serves
several machines, prints a page for a dead process and leaves with 1 whatever it died of.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fam_engine import errors
from fam_engine.config import TrainConfig
from fam_engine.data.children import how_it_ended, workers
from fam_engine.errors import DeviceError, UsageError
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.running import note_about_threads
from fam_engine.model.devices import choose_device

# How a process ends that found others gone.
LOST_PEERS = 75
_WORKER = "fam_engine.jobs.training.worker"
_SECONDS_A_LOOK = 0.2
# Whoever is told to stop does so after its step and a checkpoint; whoever waits for the dead is killed.
_SECONDS_TO_STOP = 30.0

Child = subprocess.Popen[bytes]


def run_processes(config: TrainConfig, progress: Progress) -> None:
    """Train by `config.nproc` processes, or go on where an earlier run of the same job stopped.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; what is done is kept.
    """
    _check_room(config, progress)
    with (
        tempfile.TemporaryDirectory(prefix="fam-engine-") as folder,
        Interrupts() as interrupts,
        # Whoever loses patience here would leave processes behind that still write a checkpoint.
        interrupts.held(),
        workers(
            _WORKER,
            _arguments(config.nproc, Path(folder) / "group"),
            config.model_copy(update={"nproc": 1}).model_dump_json(),
            seconds=_SECONDS_TO_STOP,
        ) as children,
    ):
        told: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        for rank, child in enumerate(children):
            threading.Thread(target=_listen, args=(rank, child, told), daemon=True).start()
        num_running, lost = len(children), ""
        while num_running:
            interrupts.check()
            with contextlib.suppress(queue.Empty):
                rank, line = told.get(timeout=_SECONDS_A_LOOK)
                if line:
                    lost = _pass_on(json.loads(line), rank, progress) or lost
                    continue
                num_running -= 1
                code = children[rank].wait()
                if code not in (0, LOST_PEERS):
                    raise _died(rank, config, how_it_ended(code))
        if any(child.returncode for child in children):
            raise _died(0, config, f"it lost the others: {lost}")


def _check_room(config: TrainConfig, progress: Progress) -> None:
    """Refuse more processes than GPUs; on a CPU, say where threads get in each other's way."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(
            "torchrun has started the processes already", code="E_NPROC", hint="leave out --nproc"
        )
    if choose_device(config.device).type == "cuda":
        if config.nproc > (num_gpus := torch.cuda.device_count()):
            raise UsageError(
                f"{config.nproc} processes were asked for, this machine has {num_gpus} GPUs",
                code="E_NPROC",
                hint=f"--nproc {num_gpus}, or --device cpu",
            )
        return
    note_about_threads(config.nproc, progress)


def _arguments(num_processes: int, group: Path) -> list[tuple[object, ...]]:
    """Give what each process is told beside the settings."""
    num_threads = torch.get_num_threads()
    return [(rank, num_processes, num_threads, group) for rank in range(num_processes)]


def _listen(rank: int, child: Child, told: queue.SimpleQueue[tuple[int, bytes]]) -> None:
    """Hand over what a process says, line by line, and an empty line when it has ended."""
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            told.put((rank, line))
    told.put((rank, b""))


def _pass_on(message: Sequence[Any], rank: int, progress: Progress) -> str | None:
    """Pass on news of the first process; raise what any of them died of; give why one has lost the others."""
    match message:
        case "lost", reason:
            return str(reason)
        case "error", name, text, code, where, hint:
            raise getattr(errors, name)(text, code=code, where=where, hint=hint)
        case "bug", text, traceback:
            error = RuntimeError(text)
            error.add_note(traceback)
            raise error
        case method, *values if rank == 0:
            getattr(progress, method)(*values)
    return None


def _died(rank: int, config: TrainConfig, how: str) -> DeviceError:
    return DeviceError(
        f"process {rank + 1} of {config.nproc} died: {how}",
        code="E_PROCESS",
        where=str(config.out),
        hint="run the same command again, it goes on from the newest checkpoint",
    )
