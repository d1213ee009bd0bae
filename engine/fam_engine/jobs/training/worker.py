"""One of the processes that `processes` starts: `python -m ...worker RANK SIZE THREADS FILE`.

In: settings as a line of JSON on standard input, which stays open for as long as the process is to go on; the file by
which they find each other. Out: a line of JSON on standard output for whatever its parent is to be told.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import torch
import torch.distributed as dist

from fam_engine.config import TrainConfig
from fam_engine.data.children import end_with_parent
from fam_engine.errors import EXIT_BUG, FamEngineError
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.training.job import run_train
from fam_engine.jobs.training.peers import PeerLostError, backend, use_own_gpu
from fam_engine.jobs.training.processes import LOST_PEERS


def main() -> None:
    """Train, and leave with the exit code of what came of it."""
    rank, size, threads, file = sys.argv[1:]
    torch.set_num_threads(int(threads))
    config = TrainConfig.model_validate_json(sys.stdin.buffer.readline())
    end_with_parent()
    parent = _Parent()
    try:
        _join(config, int(rank), int(size), file)
        run_train(config, parent)
    except PeerLostError as error:
        parent.tell("lost", " ".join(str(error.__cause__).split()))
        _leave(LOST_PEERS)
    except Interrupted as stop:
        _leave(stop.exit_code)
    except FamEngineError as error:
        parent.tell(
            "error", type(error).__name__, error.message, error.code, error.where, error.hint
        )
        _leave(error.exit_code)
    except Exception as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        parent.tell("bug", text, traceback.format_exc())
        _leave(EXIT_BUG)
    dist.destroy_process_group()


def _join(config: TrainConfig, rank: int, size: int, file: str) -> None:
    """Find the others, all of this machine: what they send goes through no network."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    use_own_gpu(config.device, rank)
    dist.init_process_group(
        backend(config.device), init_method=f"file://{file}", rank=rank, world_size=size
    )


class _Parent:
    """The process to tell about progress, by lines of JSON."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library may print is no news

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Begin a phase."""
        self.tell("start", label, total, unit)

    def advance(self, count: int, detail: str = "") -> None:
        """Note that so many more units are done, and how it looks."""
        self.tell("advance", count, detail)

    def note(self, text: str) -> None:
        """Pass on a line of news."""
        self.tell("note", text)

    def tell(self, *values: object) -> None:
        """Send values that JSON can hold."""
        print(json.dumps(values), file=self._out, flush=True)


def _leave(code: int) -> None:
    """End at once: in good order a group would wait for processes that are no more."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
