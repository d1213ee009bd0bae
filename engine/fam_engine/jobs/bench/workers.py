"""The harness: each subject in a process of its own, timed from inside, subjects taking turns.

In: functions that make subjects. Out: seconds, memory and answers of their runs. A process each, because a peak of
memory cannot be told apart within one, and because libraries fight over threads and allocators; turns (A B A B),
because a machine's speed drifts. A process may have an interpreter of its own: peers that exclude each other live in
different environments. `multiprocessing` was not used for that reason: it hands its own path to its children.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Protocol

from fam_engine.jobs.bench import serve

_ENGINE = Path(__file__).parents[3]


class Subject(Protocol):
    """What is timed."""

    def run(self, *arguments: Any) -> Any:  # noqa: ANN401 - each subject has its own work
        """Do the work once; the answer is sent to whoever measures, so it should be small."""


@dataclass(frozen=True)
class Run:
    """One run of a subject.

    Attributes:
        seconds: Wall time.
        cpu_seconds: Processor time of all threads.
        peak_bytes: Most memory the process (on CUDA: the allocator) has held so far.
        answer: What the subject gave back.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    answer: Any


class Worker:
    """A subject in a process of its own; use as a context manager.

    Args:
        make: Makes the subject. It is called in the other process, so it must not live in the
            script that is run.
        arguments: For `make`.
        threads: Of torch; None: left alone.
        device: `cpu` or `cuda`: whose memory counts.
        python: Interpreter of the process; default: this one.

    Raises:
        Exception: What `make` raised, where it can be sent.
        RuntimeError: The process ended.
    """

    def __init__(
        self,
        make: Callable[..., Subject],
        *arguments: Any,  # noqa: ANN401
        threads: int | None = None,
        device: str = "cpu",
        python: str = sys.executable,
    ) -> None:
        self._pipe, theirs = Pipe()
        # -P: nothing is imported from the current folder; the subject is from where its module was.
        file = Path(sys.modules[make.__module__].__file__ or "")
        root = file.parents[make.__module__.count(".")]
        inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        paths = dict.fromkeys((str(_ENGINE), str(root), *inherited))
        self._process = subprocess.Popen(
            [python, "-P", "-m", serve.__name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        theirs.close()
        try:
            self._pipe.send((make, arguments, threads, device))
            self.loaded_bytes: int = self._receive()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the process."""
        self.close()

    def run(self, *arguments: Any) -> Run:  # noqa: ANN401
        """Run the subject once."""
        self._pipe.send(arguments)
        return Run(*self._receive())

    def close(self) -> None:
        """Stop the process; may be called again."""
        self._pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> Any:  # noqa: ANN401
        try:
            answer = self._pipe.recv()
        except EOFError:
            code = self._process.wait()
            raise RuntimeError(f"the measured process ended with exit code {code}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def take_turns(
    workers: Mapping[str, Worker], work: Mapping[str, Iterable[Any]], rounds: int
) -> dict[str, list[Run]]:
    """Run all workers, one after the other, so many rounds.

    Args:
        workers: By name.
        work: By the same names, the arguments of a run.
        rounds: How often.

    Returns:
        By name, the runs in order.
    """
    runs: dict[str, list[Run]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            runs[name].append(worker.run(*work[name]))
    return runs
