"""The other side of the harness: a process that makes one subject and runs it whenever asked.

In, over an inherited pipe: what to make, then the arguments of each run. Out: memory after loading, then seconds,
memory and answer of each run. It needs the standard library alone, so that an environment with nothing but a peer can
run it.
"""

from __future__ import annotations

import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path


def serve(pipe: Connection) -> None:
    """Make the subject, then run it until the pipe closes."""
    make, arguments, threads, device = pipe.recv()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    subject = make(*arguments)
    pipe.send(peak_bytes(device))
    while True:
        asked = pipe.recv()
        start, cpu_start = time.perf_counter(), time.process_time()
        answer = subject.run(*asked)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        pipe.send((seconds, cpu_seconds, peak_bytes(device), answer))


def peak_bytes(device: str) -> int:
    """Give the most memory this process has held, or on `cuda` its allocator."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`, which begins at the parent's peak on Linux.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def main() -> None:
    """Serve over the pipe whose descriptor is the first argument."""
    pipe = Connection(int(sys.argv[1]))
    try:
        serve(pipe)
    except EOFError:
        pass
    except Exception as error:
        pipe.send(error)


if __name__ == "__main__":
    main()
