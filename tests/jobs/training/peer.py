"""One of the processes of `test_peers`: computes steps of the small job, in float64, and keeps what came of them.

`python -m tests.jobs.training.peer RANK SIZE FOLDER`; the folder holds `case.json` and gets `RANK.pt`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fam_engine._rust_tokenize import Spool
from fam_engine.data.packing import PackedBatch
from fam_engine.jobs.training.budget import StepPlan
from fam_engine.jobs.training.examples import Examples, measured
from fam_engine.jobs.training.losses import LossName, LossSettings
from fam_engine.jobs.training.peers import ALONE, Peers, joined
from fam_engine.jobs.training.steps import GradientMaker
from fam_engine.jobs.training.validation import validation_loss
from fam_engine.model.loading import load_model
from fam_engine.model.trainable import LoraSpec, Policy, TrainableModel

# Loss, number of records, tokens of a micro-batch: many micro-batches, one of all, one record for two processes.
CASES: tuple[tuple[LossName, int, int], ...] = (
    ("stm", 10, 64),
    ("plain", 9, 4096),
    ("plain", 1, 64),
)


def make_model(folder: Path) -> TrainableModel:
    """The tiny model with an adapter that changes something."""
    spec = LoraSpec(
        rank=3, alpha=8.0, dropout=0.0, target_modules=("q_proj", "down_proj"), use_rslora=False
    )
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64", device="cpu")
    model = TrainableModel(decoder, spec, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in model.parameters.values():
            leaf.normal_(std=0.2, generator=generator)
    return model


def open_examples(spool: Path, count: int) -> Examples:
    """The first entries of a spool."""
    return measured(spool, Spool.open(str(spool)), np.arange(count, dtype=np.int64), ())


def run_cases(model: Path, spool: Path, peers: Peers = ALONE) -> dict[str, Any]:
    """Give loss and gradients of every case, and a step in which the last process ran out of memory."""
    found: dict[str, Any] = {}
    for case in CASES:
        loss, count, budget = case
        examples = open_examples(spool, count)
        trainable = make_model(model)
        maker = GradientMaker(trainable, examples, LossSettings(loss=loss), seed=5, peers=peers)
        step, _ = maker.step(3, examples.entries, StepPlan(budget, room=1 << 60, host_room=0))
        grads = {name: leaf.grad for name, leaf in trainable.parameters.items()}
        found[str(case)] = (vars(step), grads)
    examples, trainable = open_examples(spool, 10), make_model(model)
    found["validation"] = validation_loss(trainable, examples, 128, peers)
    maker = _Short(trainable, examples, LossSettings(), seed=5, peers=peers)
    found["short"] = maker.step(3, examples.entries, StepPlan(4096, room=0, host_room=0))
    return found


class _Short(GradientMaker):
    """Out of memory on the last process alone, at its first micro-batch."""

    _was_short = False

    def _micro_batch(
        self, step: int, number: int, batch: PackedBatch, num_targets: int, policy: Policy
    ) -> torch.Tensor:
        if not self._was_short and self._peers.rank == self._peers.size - 1:
            self._was_short = True
            raise torch.OutOfMemoryError("injected")
        return super()._micro_batch(step, number, batch, num_targets, policy)


def main() -> None:
    """Join the others and compute."""
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=size
    )
    case = json.loads((folder / "case.json").read_text())
    with joined("cpu") as peers:
        # An odd number of values: the last slice is padded.
        total = torch.tensor(([0.5, 1.0, 2.0], [1.0, -1.0, 0.25])[rank])
        peers.sum_([total[:1], total[1:]])
        found = {
            "shared": peers.share({"a": [1, None]} if rank == 0 else None),
            "gathered": peers.gather([rank, 0.5]),
            "total": total,
            **run_cases(Path(case["model"]), Path(case["spool"]), peers),
        }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
