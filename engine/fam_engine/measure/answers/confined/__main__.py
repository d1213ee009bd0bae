"""The child that runs code against tests: `python -S confined`, in an empty folder.

In (standard input): one JSON object, `code` and `tests`. Out (standard output): one JSON object, `passed`, `reason`
and the `guards` that held. It splits in two before it reads anything: `candidate` gets the code, `tester` the tests.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import types
from pathlib import Path

CPU_SECONDS = 10
MEMORY_BYTES = 512 << 20
# Bounds the result; nothing else can be written at all.
FILE_BYTES = 64 << 10


def _name_packages() -> None:
    """Make our modules importable by their own names, without the rest of the package."""
    name = "fam_engine.measure.answers.confined"
    while name:
        module = types.ModuleType(name)
        module.__path__ = []
        sys.modules[name] = module
        name = name.rpartition(".")[0]
    sys.modules["fam_engine.measure.answers.confined"].__path__ = [str(Path(__file__).parent)]


def main() -> None:
    """Run one request."""
    _name_packages()
    # Loaded before rights are taken away.
    from fam_engine.measure.answers.confined import (
        candidate,
        landlock,
        lockdown,
        tester,
        wire,
    )

    os.environ.clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lockdown.limit(cpu_seconds=CPU_SECONDS, memory_bytes=MEMORY_BYTES, file_bytes=FILE_BYTES)
    guards = ["namespaces"] if lockdown.leave_network() else []
    guards += ["landlock"] if landlock.confine(landlock.python_files()) else []
    (code_reads, tests_write), (tests_read, code_writes) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            candidate.close_files(code_reads, code_writes)
            lockdown.refuse_system_calls()
            candidate.Workshop(wire.Channel(code_reads, code_writes)).serve()
        finally:
            os._exit(0)
    os.close(code_reads)
    os.close(code_writes)
    output = _take_output()
    guards.append(lockdown.refuse_system_calls())
    request = json.load(sys.stdin)
    channel = wire.Channel(tests_read, tests_write)
    result = tester.run(channel, request["code"], request["tests"], lambda: _ending(child))
    os.write(output, json.dumps({**result, "guards": guards}).encode())
    os._exit(0)


def _take_output() -> int:
    """Keep the way out for the result alone: what tests print goes nowhere."""
    output, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    return output


def _ending(child: int) -> str:
    """Say how the process of the code ended; it may also live on and have sent nonsense."""
    status = 0
    for _ in range(100):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.01)
    else:
        return "broke the connection to its tests"
    if not os.WIFSIGNALED(status):
        return "ended its process"
    if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return f"ran for more than {CPU_SECONDS} s"
    return f"crashed its process ({signal.Signals(os.WTERMSIG(status)).name})"


main()
