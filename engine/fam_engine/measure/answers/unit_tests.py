"""Code against its unit tests, in locked-down child processes.

In: the text of a program and of its tests. Out: whether they pass, and why. What holds:

- The code and its tests run in two processes, with a bare interpreter (standard library only), an empty folder as
  working directory and an empty environment. The tests' process calls the code's and gets plain values back; the
  verdict is written by the former to a file the latter never had. So code that exits, prints "passed", replaces
  built-ins or returns objects equal to everything does not pass.
- Each process has 10 s of CPU time and 512 MiB of address space, both together 20 s; nothing it prints is kept. It
  cannot start processes, send signals or write, create or remove any file.
- It can read Python's own library, shared objects and its empty folder, and no other file, by Landlock (Linux 5.13 and
  later; `confined.landlock`). Where the kernel has none the code still runs, and reports say "file access not
  confined". Refusing was rejected: macOS and older kernels could then judge no code at all, while what such code can
  read leaves the machine no more than before, for it has no network and writes nothing; at most 300 characters of the
  text of an error end up in the user's own report.
- There is no network: on Linux by a seccomp filter, and by an empty network namespace where the system allows one;
  elsewhere by an audit hook of Python, which is no proof against native code. `guards` of the result says which held.
- The whole process group is killed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fam_engine.measure.answers.confined import landlock

WALL_SECONDS = 20.0
_CHILD = Path(__file__).with_name("confined")


@dataclass(frozen=True)
class TestsRun:
    """What became of a run.

    Args:
        passed: None where the tests themselves cannot be run.
        reason: One line.
        guards: What held the code: `namespaces`, `landlock`, `seccomp`, `audit hook`.
    """

    passed: bool | None
    reason: str
    guards: tuple[str, ...]

    __test__ = False  # pytest takes the name for a class of tests


def confines_files() -> bool:
    """Whether this machine's kernel keeps code under test from the files of the machine."""
    return landlock.version() > 0


def run_tests(code: str, tests: Sequence[str]) -> TestsRun:
    """Run tests against code.

    Args:
        code: A module's text, from anyone.
        tests: Modules' texts, run one after the other in one namespace; names they do not define come from the code.
    """
    # Lone surrogates are in no valid program; they must not stop the request.
    request = json.dumps({"code": code, "tests": list(tests)}).encode()
    with (
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as told,
        tempfile.TemporaryDirectory(prefix="fam-engine-") as folder,
    ):
        asked.write(request)
        asked.seek(0)
        child = subprocess.Popen(
            # No site-packages, no .pyc files, no user's folder; hashes, so the order of sets, are the same each time.
            [sys.executable, "-S", "-B", "-s", "-P", "-X", "utf8", str(_CHILD)],
            stdin=asked,
            stdout=told,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},
            cwd=folder,
            start_new_session=True,
        )
        try:
            child.wait(WALL_SECONDS)
        except subprocess.TimeoutExpired:
            return TestsRun(False, f"ran for more than {WALL_SECONDS:g} s", ())
        finally:
            # Also what the tests left behind; the group outlives its leader.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        told.seek(0)
        return _read(told.read(), child.returncode)


def _read(output: bytes, returncode: int) -> TestsRun:
    try:
        result = json.loads(output)
        return TestsRun(result["passed"], result["reason"], tuple(result["guards"]))
    except (ValueError, KeyError, TypeError):
        return TestsRun(False, f"the tests ended their process ({returncode})", ())
