"""Whole commands through a warm fork server: a real process a run, without paying for `import torch` each time.

In: arguments of `fam-engine`. Out: exit code and what was printed. Time and memory are limited by the kernel, so that a
hang or a flood is an exit code too.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 30
WALL_SECONDS = 240  # of a machine that others use too
MEMORY_BYTES = 8 << 30


@dataclass(frozen=True)
class Command:
    """A command line, without the program's name.

    Attributes:
        arguments: Its words.
        folder: Where it runs; must be there. What it prints is kept beside it.
        before: Called in the child before the command.
    """

    arguments: Sequence[object]
    folder: Path
    before: Callable[[], None] | None = None


@dataclass(frozen=True)
class Result:
    """What came of a command.

    Attributes:
        command: The command.
        code: Its exit code, or minus the signal that ended it.
        printed: Standard output.
        errors: Standard error.
    """

    command: Command
    code: int
    printed: str
    errors: str


def import_all() -> None:
    """Import before the first fork what takes seconds."""
    import bitsandbytes  # noqa: F401
    import jinja2  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch._dynamo  # noqa: F401 - torch's optimizers import it

    import fam_engine.cli.main
    import fam_engine.jobs.evaluation.job
    import fam_engine.jobs.experiment.job
    import fam_engine.jobs.generation.job
    import fam_engine.jobs.rewriting.job
    import fam_engine.jobs.scoring.job
    import fam_engine.jobs.selection.job
    import fam_engine.jobs.tokenizing.job
    import fam_engine.jobs.training.job  # noqa: F401


def run(command: Command) -> Result:
    """Run one command."""
    return _finish(command, _start(command))


def run_many(commands: Iterable[Command], at_once: int = 2) -> Iterator[Result]:
    """Run commands, some at a time, and give what came of each, in order."""
    running: deque[tuple[Command, int]] = deque()
    for command in commands:
        if len(running) == at_once:
            yield _finish(*running.popleft())
        running.append((command, _start(command)))
    while running:
        yield _finish(*running.popleft())


def _start(command: Command) -> int:
    child = os.fork()
    if child:
        return child
    try:
        _become(command)
    finally:
        os._exit(99)  # what is not even an exit code of ours


def _finish(command: Command, child: int) -> Result:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = (_file(command, name).read_text(errors="replace") for name in ("out", "err"))
    return Result(command, code, *texts)


def _become(command: Command) -> None:
    """Be the command; never returns."""
    import torch

    from fam_engine.cli import main

    faulthandler.disable()  # pytest's, of which a user's process knows nothing
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(_file(command, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # pytest has its own of both, which would never reach the files.
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(WALL_SECONDS)
    os.chdir(command.folder)
    torch.set_num_threads(1)
    if command.before:
        command.before()
    sys.argv = ["fam-engine", *map(str, command.arguments)]
    code: object = 0
    try:
        main.main()
    except SystemExit as stop:
        code = stop.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _file(command: Command, name: str) -> Path:
    return command.folder.with_name(f"{command.folder.name}.{name}")
