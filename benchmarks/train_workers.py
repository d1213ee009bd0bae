"""The engines of training, a process each, that a failure of one takes nothing from the others.

In: a model's folder and the peers asked for. Out: an `Engine` by name, ours first; its answers are `Steps`, or why not.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from train_engines import OursTraining, Steps
from train_peers import PeerTraining, TrlTraining
from workloads import Question

from fam_engine.jobs.bench.workers import Worker

PEERS = ("peft", "liger", "trl", "unsloth", "unsloth-layer", "unsloth-none")
OURS = "fam-engine"


@dataclass
class Engine:
    """An engine in its process.

    Attributes:
        worker: The process.
        failure: Why it is gone, if it is.
    """

    worker: Worker
    failure: str = ""

    def run(self, steps: list[list[Question]], *arguments: object) -> Steps | str:
        """Run steps; say why not."""
        if self.failure:
            return self.failure
        try:
            found = self.worker.run(steps, *arguments).answer
        except Exception as error:
            # Its process is gone; the others are to be measured all the same.
            self.failure = _reason(error)
            return self.failure
        return found or "out of memory"


@contextlib.contextmanager
def started(
    folder: Path, options: argparse.Namespace, failed: dict[str, str]
) -> Iterator[dict[str, Engine]]:
    """Start the engines; why a peer cannot be goes into `failed`."""
    with contextlib.ExitStack() as stack:
        engines = {}
        for name in (OURS, *options.peers):
            kind = {OURS: OursTraining, "trl": TrlTraining}.get(name, PeerTraining)
            arguments = (str(folder), options.device, *([name] if kind is PeerTraining else []))
            try:
                worker = Worker(kind, *arguments, threads=options.threads, device=options.device)
            except Exception as error:
                if name == OURS:
                    raise
                failed[name] = _reason(error)
                continue
            engines[name] = Engine(stack.enter_context(worker))
        yield engines


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
