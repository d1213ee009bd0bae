"""What trains an adapter on an NF4 model: our engine, and what it shares with its peers (`train_peers`).

In: a folder of an NF4 model, then documents as token ids. Out: losses, seconds and memory of whole optimizer steps, or
the first step's gradients. All engines read the same bytes, begin with the same adapter (`adapter_values`: B is not
zero, so every gradient has something to say), train rank 16 on all seven matrices with AdamW on fp32 leaves (TRL's are
bf16, its own choice) and clip at 1. A step's loss is the mean over all its supervised tokens, however the documents are
spread over micro-batches.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from engines import spooled
from timing import forget_peak, synchronize
from workloads import Question

RANK, ALPHA, MAX_NORM = 16, 16, 1.0
LEARNING_RATE = 1e-4
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GIB = 1 << 30


@dataclass(frozen=True)
class Setting:
    """How an engine is to run.

    Attributes:
        cap_gib: Memory the process may have, GiB; 0: all.
        docs: Documents of a micro-batch; 0: all of a step, by Unsloth without padding. Ours plans that by itself.
        is_checkpointing: Whether layers are computed twice. Ours plans that, too; Unsloth's is part of
            its name.
    """

    cap_gib: float = 0.0
    docs: int = 0
    is_checkpointing: bool = False


@dataclass(frozen=True)
class Steps:
    """What steps found.

    Attributes:
        losses: Of each, nats a supervised token.
        seconds: Of each.
        peak_bytes: Most the allocator gave out.
        reserved_bytes: Most it held.
        gradients: By PEFT's name, fp32, of the first and last layer, before clipping; where asked.
        plan: What the engine chose by itself.
    """

    losses: list[float]
    seconds: list[float]
    peak_bytes: int
    reserved_bytes: int
    gradients: dict[str, np.ndarray]
    plan: str = ""


def supervised(documents: list[Question]) -> int:
    """Count tokens to predict."""
    return sum(len(answer) for question in documents for answer in question.answers)


def adapter_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Give the first values of a leaf by PEFT's name of it in a file: the same for every engine."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if ".lora_A." in name:
        bound = 1 / math.sqrt(shape[1])
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    return (1e-3 * rng.standard_normal(shape)).astype(np.float32)


def cap_memory(device: str, gib: float) -> None:
    """Let this process have only so much of the card's memory; 0: all."""
    import torch

    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total) if gib else 1.0)


def set_adapter(leaves: dict[str, Any]) -> None:
    """Give the leaves their first values."""
    import torch

    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(torch.from_numpy(adapter_values(name, tuple(leaf.shape))))


def outer_gradients(leaves: dict[str, Any], num_layers: int) -> dict[str, np.ndarray]:
    """Give copies of the gradients of the first and last layer, fp32."""
    places = (".layers.0.", f".layers.{num_layers - 1}.")
    return {
        name: leaf.grad.float().cpu().numpy().copy()
        for name, leaf in leaves.items()
        if any(place in name for place in places) and leaf.grad is not None
    }


@dataclass(frozen=True)
class Stepper:
    """What makes an engine's steps.

    Attributes:
        device: `cpu` or `cuda`.
        num_layers: Of the model.
        leaves: What is trained, by PEFT's names.
        add_gradients: Adds those of a step's documents and gives the loss.
        update: Clips, moves the leaves and forgets the gradients.
    """

    device: str
    num_layers: int
    leaves: dict[str, Any]
    add_gradients: Callable[[list[Question]], Any]
    update: Callable[[], None]

    def run(self, steps: list[list[Question]], wants_gradients: bool) -> Steps:
        """Run whole optimizer steps, each timed with the device empty before and after."""
        forget_peak(self.device)
        losses, seconds, gradients = [], [], {}
        for documents in steps:
            synchronize(self.device)
            start = time.perf_counter()
            loss = self.add_gradients(documents)
            if wants_gradients and not gradients:
                gradients = outer_gradients(self.leaves, self.num_layers)
            self.update()
            synchronize(self.device)
            seconds.append(time.perf_counter() - start)
            losses.append(float(loss))
        return Steps(losses, seconds, *peaks(self.device), gradients)


def peaks(device: str) -> tuple[int, int]:
    """Give the most bytes the allocator has given out, and held; zeros on a CPU."""
    import torch

    if device != "cuda":
        return 0, 0
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def or_out_of_memory(run: Callable[[], Steps], leaves: dict[str, Any]) -> Steps | None:
    """Run; None where memory did not suffice. What the allocator holds is given back: other engines want the card."""
    import gc

    import torch

    found = None
    try:
        found = run()
    except Exception as error:
        # Torch's, the driver's or Triton's, or what ours makes of it once nothing smaller is left to try.
        if "out of memory" not in str(error) and getattr(error, "code", "") != "E_OOM_RECORD":
            raise
    if found is None:
        for leaf in leaves.values():
            leaf.grad = None
    gc.collect()  # a trainer and its callbacks hold each other, and the optimizer's state
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


class OursTraining:
    """fam-engine: the steps of `train`, in micro-batches that it chooses for the memory there is."""

    def __init__(self, folder: str, device: str) -> None:
        from fam_engine.jobs.training.budget import memory_needs
        from fam_engine.model.loading import load_model
        from fam_engine.model.memory import num_multiprocessors
        from fam_engine.model.trainable import LoraSpec, TrainableModel

        dtype = "bf16" if device == "cuda" else "fp32"
        self.decoder = load_model(folder, precision="nf4", compute_dtype=dtype, device=device)
        spec = LoraSpec(RANK, ALPHA, 0.0, MODULES, False)
        self.model = TrainableModel(self.decoder, spec, seed=0)
        self.needs = memory_needs(
            self.decoder.config,
            spec,
            precision="nf4",
            compute_dtype=self.decoder.compute_dtype,
            device=self.decoder.device,
            optimizer="adamw",
            num_multiprocessors=num_multiprocessors(self.decoder.device),
        )
        self.device = device
        self.free = self._free(0.0)
        # `train` writes its spool once; so are documents that come again.
        self.begun: tuple[list[Question], Any, Any] | None = None
        self.plan = ""

    def run(
        self, steps: list[list[Question]], setting: Setting, wants_gradients: bool = False
    ) -> Steps | None:
        """Run optimizer steps from the first values of the adapter on; None: out of memory."""
        from fam_engine.jobs.training.optim import AdamW

        leaves = self.model.parameters
        cap_memory(self.device, setting.cap_gib)
        set_adapter(leaves)
        self.free, self.begun = self._free(setting.cap_gib), None
        self.optimizer = AdamW("adamw", leaves, weight_decay=0.0)
        num_layers = self.decoder.config.num_layers
        stepper = Stepper(self.device, num_layers, leaves, self.gradients, self._update)
        found = or_out_of_memory(lambda: stepper.run(steps, wants_gradients), leaves)
        return found and replace(found, plan=self.plan)

    def _free(self, cap_gib: float) -> int:
        """Give the bytes the process may take, weights and all."""
        import torch

        from fam_engine.jobs.training.budget import process_share

        free = process_share(self.decoder.device, 1)
        if self.device == "cuda":
            free += torch.cuda.memory_allocated()
        return min(free, int(cap_gib * GIB)) if cap_gib else free

    def _update(self) -> None:
        self.optimizer.clip_grad_norm(MAX_NORM)
        self.optimizer.step(LEARNING_RATE)

    def gradients(self, documents: list[Question]) -> float:
        """Add a step's gradients and give the loss."""
        if self.begun is None or self.begun[0] is not documents:
            self.begun = self._begin(documents)
        _, maker, planned = self.begun
        loss, plan = maker.step(0, np.arange(len(documents)), planned)
        if plan != planned:
            self.plan += ", then less, since memory ran out"
        self.begun = documents, maker, plan
        return float(loss.loss)

    def _begin(self, documents: list[Question]) -> tuple[list[Question], Any, Any]:
        """Write documents as `train` does, and plan as it does."""
        import tempfile

        from fam_engine.jobs.training.budget import host_share, plan_for
        from fam_engine.jobs.training.examples import measured
        from fam_engine.jobs.training.losses import LossSettings
        from fam_engine.jobs.training.steps import GradientMaker
        from fam_engine.report.training import layers_kept

        with tempfile.TemporaryDirectory() as folder:
            entries, groups = np.arange(len(documents)), ("",) * len(documents)
            examples = measured(Path(folder), spooled(folder, documents), entries, groups)
        plan = plan_for(
            self.needs,
            self.free,
            self.decoder.device,
            longest=examples.longest,
            max_tokens=None,
            host_free=host_share(self.decoder.device, 1),
        )
        self.plan = f"micro-batches of {plan.max_tokens:,} tokens, {layers_kept(asdict(plan))}"
        maker = GradientMaker(self.model, examples, LossSettings(), seed=0)
        return documents, maker, plan.step
