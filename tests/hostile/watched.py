"""Runs jobs one after the other, each in a forked child that notes what it reaches for.

`python -m tests.hostile.watched JOBS RESULTS` reads a JSON list of `{name, inside, command}` and writes a JSON list of
what came of each: exit code, output, and what Python's audit hook saw (files opened, programs started, sockets,
unpickling). Under strace the same run shows what no hook sees: opens and sockets of Rust and C, and of child processes.
Before each job a file `MARK/name` is looked for, so that a trace can be cut into jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

MARK = "/fam-engine-trace"
SECONDS = 120
# A job that must be seen: it does all that others must not.
MISBEHAVE = "misbehave"
_EVENTS = (
    "open",
    "socket.",
    "subprocess.Popen",
    "os.exec",
    "os.system",
    "os.posix_spawn",
    "os.fork",
)
_MORE_EVENTS = ("pickle.find_class", "sqlite3.connect")


def main() -> None:
    import_all()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(job) for job in jobs]))


def import_all() -> None:
    """Import before the first fork what every job needs."""
    import bitsandbytes  # noqa: F401
    import torch

    from fam_engine.cli import main  # noqa: F401

    torch.set_num_threads(1)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a child; one that takes too long is killed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            os._exit(begin(job, folder))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        mark("between jobs")
        events = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
        out, err = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    return {"name": job["name"], "code": code, "out": out, "err": err, "events": events}


def begin(job: dict[str, Any], folder: Path) -> int:
    """Become the job: its folder, its output, its watch."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    events = os.open(folder / "events", os.O_WRONLY | os.O_CREAT)
    os.chdir(job["inside"])
    mark(job["name"])
    sys.addaudithook(lambda event, details: note(events, event, details))
    if job["command"] == [MISBEHAVE]:
        return misbehave()
    return call(job["command"])


def mark(name: str) -> None:
    """Leave a mark in the trace."""
    with contextlib.suppress(FileNotFoundError):
        os.open(f"{MARK}/{name}", os.O_RDONLY)


def note(file: int, event: str, details: tuple[Any, ...]) -> None:
    if event.startswith(_EVENTS) or event in _MORE_EVENTS:
        line = json.dumps([event, [_plain(value) for value in details]])
        os.write(file, line.encode() + b"\n")


def _plain(value: object) -> object:
    if isinstance(value, bytes | os.PathLike):
        return os.fsdecode(value)
    return value if isinstance(value, str | int | None) else repr(value)


def call(command: list[str]) -> int:
    """Run the program."""
    from fam_engine.cli import main as program

    sys.argv = ["fam-engine", *command]
    try:
        program.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def misbehave() -> int:
    """Open a file outside, start a program, unpickle, make a socket, leave a canary."""
    outside = Path("../outside")
    (outside / "secret").read_text()
    (outside / "canary").touch()
    os.system("true")
    pickle.loads(pickle.dumps(Path))
    with socket.socket() as end:
        end.connect_ex(("127.0.0.1", 9))
    return 0


if __name__ == "__main__":
    main()
