"""Equality of formulas, asked of math-verify in a child process.

In: two formulas as text. Out: whether they are equal, or None where that took too long. A formula from a model may
hang or blow up whatever evaluates it (`9**9**9`), and sympy evaluates more than it admits, so that happens in a child
with limits (`symbolic_worker`), one for all comparisons because importing sympy takes over a second. A child that
hits a limit dies, costs this one comparison, and is replaced at the next.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time

from fam_engine.errors import UsageError

# Wall seconds before a silent child is given up; its own limit is 5 s of CPU time a comparison.
_PATIENCE_SECONDS = 30.0
_START_SECONDS = 120.0


def equal(gold: str, other: str) -> bool | None:
    """Whether two formulas are equal, by math-verify.

    Args:
        gold: TeX or plain text, without dollar signs round it or with.
        other: The same.

    Returns:
        None where the comparison went beyond its limits.

    Raises:
        UsageError: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UsageError(
            f"whether {other[:60]!r} equals {gold[:60]!r} only math-verify can decide, and it is not installed",
            code="E_EXTRA",
            hint="pip install 'fam-engine[math]', then the same command again",
        )
    with _lock:
        return _shared().ask(gold, other)


class _Child:
    """The process that compares."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-X",
                "utf8",
                "-m",
                "fam_engine.measure.answers.symbolic_worker",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        self.alive = self._line(_START_SECONDS) == b"ready\n"
        if not self.alive:
            self.close()
            raise RuntimeError("the child process of math-verify does not start")

    def ask(self, gold: str, other: str) -> bool | None:
        """Compare two formulas; None if the child did not survive it."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps([gold, other]).encode() + b"\n")
            stdin.flush()
            line = self._line(_PATIENCE_SECONDS)
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self.close()
            return None
        return bool(json.loads(line))

    def close(self) -> None:
        """Stop the child."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _line(self, seconds: float) -> bytes:
        """Read a line within a time; less than a line if the child dies or keeps silent."""
        stdout = self._process.stdout
        assert stdout is not None
        line, deadline = b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(stdout.fileno(), 4096) if ready else b""
            if not piece:
                break
            line += piece
        return line


_lock = threading.Lock()
_children: list[_Child] = []


def _shared() -> _Child:
    """Give the child of this process, started if need be."""
    # After a fork the child process belongs to the parent; leave it alone.
    _children[:] = [c for c in _children if c.alive and c.owner == os.getpid()]
    if not _children:
        _children.append(_Child())
    return _children[0]


@atexit.register
def _close_all() -> None:
    for child in _children:
        if child.owner == os.getpid():
            child.close()
