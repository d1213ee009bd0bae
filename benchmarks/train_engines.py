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
from dataclasses import dataclass, replace
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
        docs: Documents of a micro-batch; 0: all of a step, by Unsloth without padding. Ours makes one of all.
        is_checkpointing: Whether layers are computed twice. Ours plans that by itself; Unsloth's is
            part of its name.
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
        launch_seconds: Of each, until the host had asked for all its gradients (clipping them waits for the GPU);
            TRL's are not seen. Where a GPU's are near `seconds`, the GPU waits for the host: CUDA graphs would help.
        peak_bytes: Most the allocator gave out.
        reserved_bytes: Most it held.
        gradients: By PEFT's name, fp32, of the first and last layer, before clipping; where asked.
        plan: What the engine chose by itself.
    """

    losses: list[float]
    seconds: list[float]
    launch_seconds: list[float]
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
        add_gradients: Adds those of a step's documents and gives the loss, which nobody has waited for.
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
        losses, seconds, launch_seconds, gradients = [], [], [], {}
        for documents in steps:
            synchronize(self.device)
            start = time.perf_counter()
            loss = self.add_gradients(documents)
            launch_seconds.append(time.perf_counter() - start)
            if wants_gradients and not gradients:
                gradients = outer_gradients(self.leaves, self.num_layers)
            self.update()
            synchronize(self.device)
            seconds.append(time.perf_counter() - start)
            losses.append(float(loss))
        return Steps(losses, seconds, launch_seconds, *peaks(self.device), gradients)


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
    except RuntimeError as error:  # torch's own, the driver's or Triton's
        if "out of memory" not in str(error):
            raise
    if found is None:
        for leaf in leaves.values():
            leaf.grad = None
    gc.collect()  # a trainer and its callbacks hold each other, and the optimizer's state
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


class OursTraining:
    """fam-engine: the step written out by hand, layers kept as memory allows."""

    def __init__(self, folder: str, device: str) -> None:
        from fam_engine.model.loading import load_model
        from fam_engine.model.trainable import LoraSpec, TrainableModel

        dtype = "bf16" if device == "cuda" else "fp32"
        self.decoder = load_model(folder, precision="nf4", compute_dtype=dtype, device=device)
        spec = LoraSpec(RANK, ALPHA, 0.0, MODULES, False)
        self.model = TrainableModel(self.decoder, spec, seed=0)
        self.device, self.setting = device, Setting()
        # `train` writes its spool once; so are documents that come again packed once.
        self.packed: tuple[list[Question], Any] | None = None
        self.plan = ""

    def run(
        self, steps: list[list[Question]], setting: Setting, wants_gradients: bool = False
    ) -> Steps | None:
        """Run optimizer steps from the first values of the adapter on; None: out of memory."""
        from fam_engine.jobs.training.optim import AdamW

        self.setting, leaves = setting, self.model.parameters
        cap_memory(self.device, setting.cap_gib)
        set_adapter(leaves)
        self.optimizer = AdamW("adamw", leaves, weight_decay=0.0)
        num_layers = self.decoder.config.num_layers
        stepper = Stepper(self.device, num_layers, leaves, self.gradients, self._update)
        found = or_out_of_memory(lambda: stepper.run(steps, wants_gradients), leaves)
        return found and replace(found, plan=self.plan)

    def _update(self) -> None:
        self.optimizer.clip_grad_norm(MAX_NORM)
        self.optimizer.step(LEARNING_RATE)

    def gradients(self, documents: list[Question]) -> Any:  # noqa: ANN401 - torch is imported late
        """Add a step's gradients, its documents in one micro-batch, and give the loss."""
        import torch

        if self.packed is None or self.packed[0] is not documents:
            self.packed = documents, _packed(documents)
        num_targets, batch = supervised(documents), self.packed[1]
        policy = self._policy(batch)
        num_layers = self.decoder.config.num_layers
        self.plan = f"{policy.num_whole} of {num_layers} layers keep their activations"
        if policy.offload:
            self.plan += ", inputs of the others in the host's memory"
        nll_R = self.model.forward_backward(
            batch,
            lambda nll_R: torch.full_like(nll_R, 1 / num_targets),
            dropout_seed=None,
            policy=policy,
        )
        return nll_R.sum() / num_targets

    def _policy(self, batch: Any) -> Any:  # noqa: ANN401 - torch is imported late
        """Plan from what the process may still have: what layers keep."""
        import torch

        from fam_engine.jobs.training.budget import host_share
        from fam_engine.model.memory import free_bytes
        from fam_engine.model.trainable import Policy

        if self.device != "cuda":
            return Policy(self.decoder.config.num_layers)
        free = free_bytes(self.decoder.device)
        if self.setting.cap_gib:
            free = min(free, int(self.setting.cap_gib * GIB) - torch.cuda.memory_allocated())
        # A tenth for the allocator's gaps; the scratch of augmented matrices is made at the first step.
        return self.model.choose_policy(
            batch, free=int(0.9 * free) - GIB, host_free=host_share(self.decoder.device, 1)
        )


def _packed(documents: list[Question]) -> Any:  # noqa: ANN401 - fam-engine is imported late
    import tempfile

    from fam_engine._rust_tokenize import pack_batch
    from fam_engine.data.packing import PackedBatch

    with tempfile.TemporaryDirectory() as folder:
        spool = spooled(folder, documents)
        return PackedBatch(**pack_batch(spool, np.arange(len(spool), dtype=np.int64)))
