"""Runs of the command line as real processes, without paying for `import torch` in each.

A server that has imported everything forks a process a run (`multiprocessing`'s forkserver): the real job, which may be
killed, interrupted, limited, or meet a fault of `faulty_disk.c`, with which the server was started.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TypeVar

# Modes of faulty_disk.c.
COUNT, SIGNAL, TEAR, FAIL_ONCE, FAIL_ON = range(1, 6)
KILLED = -signal.SIGKILL
NUM_AT_ONCE = 2
# Calls a test meets, at random: `every_call.py` meets all there are, and every run takes others.
_NUM_CALLS = 8
# What a run that is fed rubbish may take: far more than any good one does.
_CPU_SECONDS, _MEMORY_BYTES = 30, 8 << 30
_PRINTED, _ERRORS, _CALLS = "stdout.txt", "stderr.txt", "calls.txt"
_SOURCE = Path(__file__).with_name("faulty_disk.c")
_SERVER = multiprocessing.get_context("forkserver")
# Starting a process also reaps others, which must not be waited for meanwhile.
_one_thread = threading.Lock()

Prepare = Callable[[], None]
T = TypeVar("T")
R = TypeVar("R")


def start_server(library: Path) -> None:
    """Start the server, with `faulty_disk.c` compiled to `library`."""
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    _SERVER.set_forkserver_preload(["tests.faults.preloaded"])
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library)
    try:
        first = _SERVER.Process(target=_check_preloaded)
        first.start()
    finally:
        del os.environ["LD_PRELOAD"]
        if before is not None:
            os.environ["LD_PRELOAD"] = before
    first.join()
    assert first.exitcode == 0, "the server has not imported what runs need"


def _check_preloaded() -> None:
    assert "tests.faults.preloaded" in sys.modules
    assert ctypes.CDLL(None).faulty_disk_calls() == 0


@dataclass(frozen=True)
class Ended:
    """A run that has ended.

    Attributes:
        code: Exit code; minus the signal that killed it.
        printed: What it wrote to standard output.
        errors: What it wrote to standard error.
        num_calls: Calls that changed its folder, where they were counted; 0 if it was killed.
    """

    code: int
    printed: str
    errors: str
    num_calls: int


class Run:
    """A run of the command line.

    Args:
        line: Arguments.
        folder: Where it runs; made if absent. The output folder is named relative to it, so that all results of a
            job are the same wherever it runs.
        prepare: Called in the process before anything else; must be importable.
    """

    def __init__(self, line: Sequence[str], folder: Path, prepare: Prepare | None = None) -> None:
        folder.mkdir(exist_ok=True)
        for name in (_PRINTED, _ERRORS, _CALLS):
            # Those of an earlier run, or links to another's.
            (folder / name).unlink(missing_ok=True)
        self._folder = folder
        self._process: ForkServerProcess = _SERVER.Process(
            target=_work, args=(line, folder, prepare), daemon=True
        )
        with _one_thread:
            self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    def wait_for_start(self) -> None:
        """Wait until a signal meets the program, no longer what starts it."""
        while not (self._folder / _CALLS).exists() and self.is_alive():
            time.sleep(0.001)

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not connection.wait([self._process.sentinel], 0)

    def signal(self, number: int) -> None:
        """Send a signal to the process and its group, as a terminal or a scheduler does."""
        for send in (os.killpg, os.kill):  # its group may not be made yet
            with contextlib.suppress(ProcessLookupError):
                send(self.pid, number)
                return

    def wait(self, seconds: float = 240) -> Ended:
        """Wait for its end; fail after so long."""
        assert connection.wait([self._process.sentinel], seconds), f"still runs after {seconds} s"
        with _one_thread:
            self._process.join()
        code = self._process.exitcode
        assert code is not None
        printed, errors, calls = map(self._read, (_PRINTED, _ERRORS, _CALLS))
        return Ended(code, printed, errors, int(calls or 0))

    def _read(self, name: str) -> str:
        """Read what it wrote; a run that was killed at once has made no file."""
        path = self._folder / name
        return path.read_text(errors="replace") if path.exists() else ""


def run(line: Sequence[str], folder: Path, prepare: Prepare | None = None) -> Ended:
    """Run to the end."""
    return Run(line, folder, prepare).wait()


def sample(command: str, num_calls: int, seed: int) -> list[int]:
    """Give the numbers of the calls to meet of a job; a study takes longer than the others, and fewer."""
    count = _NUM_CALLS // 4 if command == "experiment" else _NUM_CALLS
    return sorted(random.Random(seed).sample(range(1, num_calls + 1), min(count, num_calls)))


def faults(folder: Path, mode: int, number: int = 0, what: int = signal.SIGKILL) -> Prepare:
    """Give what makes the `number`-th call that changes a folder meet a signal or an error."""
    return partial(_arm, folder, mode, number, what)


def file_size(limit: int) -> Prepare:
    """Give what limits the size of files, in bytes."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))


def limit_resources() -> None:
    """Make an exit code of a hang or a flood of memory; itself what is called in the process."""
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + _CPU_SECONDS, used + _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def full_stream(number: int) -> Prepare:
    """Give what puts a device that is always full in the place of standard output (1) or error (2)."""
    return partial(_fill_up, number)


def at_once(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Do some work in as many threads as runs are to go on at once."""
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        return list(pool.map(work, items))


def _arm(folder: Path, mode: int, number: int, what: int) -> None:
    library = ctypes.CDLL(None)
    library.faulty_disk_arm(bytes(folder), mode, ctypes.c_long(number), what)


def _fill_up(number: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def _work(line: Sequence[str], folder: Path, prepare: Prepare | None) -> None:
    os.setpgid(0, 0)
    os.chdir(folder)
    for number, name in ((1, _PRINTED), (2, _ERRORS)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # multiprocessing would make an exit code of its own of KeyboardInterrupt.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    calls = os.open(_CALLS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    from fam_engine.cli import main

    sys.argv = ["fam-engine", *line]
    if prepare:
        prepare()
    try:
        main.main()
    finally:
        os.write(calls, str(ctypes.CDLL(None).faulty_disk_calls()).encode())
