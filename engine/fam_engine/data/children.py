"""Child processes for programs and parsers of other people, which may abort, hang or fill the memory.

In: a module to run. Out: a process whose end costs its parent nothing but an answer, and words for how it ended.
Threads were no choice: nothing in-process can take time and memory back, or survive an abort. Children are started
anew, never forked: the parent may hold threads and a GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_OUR_STDERR = 2
_WORDS = {
    signal.SIGXCPU: "it took too long",
    signal.SIGKILL: "it was killed, perhaps for its memory",
}


def start_child(
    module: str, *arguments: object, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Run a module of this package, with pipes to its standard input and output."""
    # -P: a `json.py` in the folder one happens to be in, a downloaded one perhaps, is not to be imported.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        # Signals are for the job: a child that died of one would leave records out.
        start_new_session=True,
    )


@contextlib.contextmanager
def workers(
    module: str, arguments: Iterable[Sequence[object]], settings: str, *, seconds: float
) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """Start a child for each list of arguments, with our standard error; end those that are left when this ends.

    Whoever reads their standard output closes it.

    Args:
        module: What they run.
        arguments: What each is given.
        settings: A line that each reads first.
        seconds: They have so long to end, once they are told to.
    """
    children: list[subprocess.Popen[bytes]] = []
    try:
        for of_one in arguments:
            child = start_child(module, *of_one, stderr=_OUR_STDERR)
            children.append(child)
            assert child.stdin is not None
            with contextlib.suppress(OSError):  # it is dead already: who watches it will see
                child.stdin.write(f"{settings}\n".encode())
                child.stdin.flush()
        yield children
    finally:
        stop_children(children, seconds)


def stop_children(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Close the standard input of children, which tells them to end; kill those that have not after so long."""
    for child in children:
        assert child.stdin is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
    deadline = time.monotonic() + seconds
    for child in children:
        try:
            child.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class JsonChild:
    """A child that answers a line of JSON with a line of JSON.

    Args:
        module: What it runs.
        arguments: What it is given.
    """

    def __init__(self, module: str, *arguments: object) -> None:
        self._process = start_child(module, *arguments)
        # Whoever forgets to close leaves no process behind.
        weakref.finalize(self, _stop, self._process)

    def ask(self, request: dict[str, Any], seconds: float) -> Any:  # noqa: ANN401 - any JSON value
        """Send a request and wait so long; None if the child died or kept silent."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            return None
        ready, _, _ = select.select([stdout], [], [], seconds)
        line = stdout.readline() if ready else b""
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> int:
        """Stop the child; give its exit code, or minus the signal it died of. May be called again."""
        return _stop(self._process)


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            # What a dead child has not read is still to be flushed, and cannot be.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    return code


def end_with_parent() -> None:
    """Have this process terminated once its standard input is closed, as it is when its parent dies."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Not through `sys.stdin`, whose lock the end of the interpreter would wait for.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def become_child(memory_bytes: int) -> None:
    """Limit the memory of this process."""
    with contextlib.suppress(ValueError, OSError):  # not every system limits address space
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def allow_seconds(seconds: int) -> None:
    """End this process once it has computed for so much longer; may be called again."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def how_it_ended(code: int) -> str:
    """Say how a child ended, by the exit code that `subprocess` gives."""
    if code >= 0:
        return f"it ended with code {code}"
    return _WORDS.get(signal.Signals(-code), f"it died of {signal.Signals(-code).name}")
