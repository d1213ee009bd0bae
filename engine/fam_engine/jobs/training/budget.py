"""How much memory training takes, and what a micro-batch may be: its tokens, and how many layers keep theirs.

In: the model's shape, the adapter's form, bytes that are free. Out: a `MemoryPlan`, the same for the same input: pure,
so that a dry run plans for cards that are not there. Estimates, printed as such; a step that runs out of memory all the
same lets fewer layers keep their activations, then the host keep their inputs, then halves its micro-batches. What
cannot fit at all, the weights and the longest record on one card, is refused with the plan before the weights are read:
there is no splitting of a model over cards here.

What layers do not keep is computed again, which costs most of another pass forward; micro-batches beyond some
thousand tokens save next to nothing. So a micro-batch has as many tokens as fit with every layer's activations, up
to where more make nothing faster, but never fewer than are enough to multiply at full speed, as long as those fit at
all. What layers keep may go to the host's memory where else neither those nor the longest record would fit.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from fam_engine.data.packing import ROW_GRID, on_grid
from fam_engine.errors import DeviceError
from fam_engine.jobs.training.optim import OptimizerName
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import LoraSpec
from fam_engine.model.memory import free_bytes, stored_bytes
from fam_engine.model.training.layer_inputs import SHARE_OF_HOST
from fam_engine.model.training.recomputation import (
    BatchShape,
    Policy,
    TokenBytes,
    activation_bytes,
    choose_policy,
    host_bytes,
    least_policy,
    scratch_bytes,
    token_bytes,
)
from fam_engine.report.training import layers_kept, memory_parts
from fam_engine.report.wording import gib

# By device. Beyond the first a larger micro-batch no longer makes the matrix products faster; from the second on it
# makes them faster by less than keeping activations saves.
_MOST_TOKENS = {"cpu": 2048, "cuda": 16384}
_ENOUGH_TOKENS = {"cpu": 1024, "cuda": 2048}
# Part of what is left beside weights, adapter and optimizer that activations may take. A GPU's allocator leaves gaps;
# a CPU's memory is others' too, and whoever takes the last of it is killed.
_SHARE_OF_ROOM = {"cpu": 0.5, "cuda": 0.9}
# Of a parameter: value and gradient in fp32, beside its copy in the compute dtype; then two moments.
_VALUE_BYTES = 8
_MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2}


@dataclass(frozen=True)
class StepPlan:
    """How steps are computed.

    Attributes:
        max_tokens: Token budget of a micro-batch.
        room: Bytes for a micro-batch's activations: layers keep what fits, which changes no bit.
        host_room: Bytes of the host's memory for those that do not.
    """

    max_tokens: int
    room: int
    host_room: int


@dataclass(frozen=True)
class MemoryNeeds:
    """What one process needs whatever its micro-batches are, bytes, and what their tokens add; all estimated.

    Attributes:
        weights: Of the frozen model.
        scratch: One of its matrices in the compute dtype, with its adapter beside it.
        adapter: The trained parameters, their gradients and their copies to compute with.
        optimizer: Its moments.
        each: What a token of a micro-batch takes.
        num_layers: The model's layers.
    """

    weights: int
    scratch: int
    adapter: int
    optimizer: int
    each: TokenBytes
    num_layers: int

    def activations(self, batch: BatchShape, policy: Policy) -> int:
        """Give what a micro-batch takes at its peak; never logits of the whole vocabulary."""
        return activation_bytes(self.each, batch, policy, num_layers=self.num_layers)

    def policy(self, batch: BatchShape, plan: StepPlan) -> Policy:
        """Give the policy for a micro-batch of a step."""
        return choose_policy(
            self.each,
            batch,
            num_layers=self.num_layers,
            free=plan.room,
            host_free=plan.host_room,
        )

    def least_policy(self, batch: BatchShape, host_free: int) -> Policy:
        """Give the policy for a micro-batch that takes least."""
        return least_policy(self.each, batch, num_layers=self.num_layers, host_free=host_free)


@dataclass(frozen=True)
class MemoryPlan:
    """What one process takes, bytes, all estimated, and what it does with it.

    Attributes:
        weights: As of `MemoryNeeds`.
        scratch: As there.
        adapter: As there.
        optimizer: As there.
        activations: Of the largest micro-batch there may be; those of a step are of one size, and may all be smaller.
        num_tokens: The tokens of that: the budget, or a longer record.
        max_tokens: Token budget of a micro-batch.
        num_layers: The model's layers.
        num_whole: Those that keep their activations, in the largest micro-batch.
        host: Of the host's memory, what inputs of its layers take; 0: they are on the device.
        room: Bytes that activations may take; those of the largest micro-batch may have to take more.
        host_room: Bytes of the host's memory that they may take.
    """

    weights: int
    scratch: int
    adapter: int
    optimizer: int
    activations: int
    num_tokens: int
    max_tokens: int
    num_layers: int
    num_whole: int
    host: int
    room: int
    host_room: int

    @property
    def total(self) -> int:
        """All of it, on the device."""
        return self.weights + self.scratch + self.adapter + self.optimizer + self.activations

    @property
    def step(self) -> StepPlan:
        """How steps are computed."""
        return StepPlan(self.max_tokens, self.room, self.host_room)


def memory_needs(
    config: ModelConfig,
    spec: LoraSpec,
    *,
    precision: str,
    compute_dtype: torch.dtype,
    device: torch.device,
    optimizer: OptimizerName,
    num_multiprocessors: int,
) -> MemoryNeeds:
    """Estimate what training a model takes, from its shape.

    Args:
        config: The model's shape.
        spec: The adapter's form.
        precision: Of the weights.
        compute_dtype: Of the activations.
        device: Where.
        optimizer: Which one.
        num_multiprocessors: Of the GPU; without meaning on a CPU.
    """
    trained = num_trainable(config, spec)
    return MemoryNeeds(
        weights=stored_bytes(config, precision),
        scratch=scratch_bytes(config, spec, dtype=compute_dtype),
        adapter=trained * (_VALUE_BYTES + compute_dtype.itemsize),
        optimizer=trained * _MOMENT_BYTES[optimizer],
        each=token_bytes(
            config,
            spec,
            dtype=compute_dtype,
            device=device,
            num_multiprocessors=num_multiprocessors,
        ),
        num_layers=config.num_layers,
    )


def plan_for(
    needs: MemoryNeeds,
    free: int,
    device: torch.device,
    *,
    longest: int,
    max_tokens: int | None,
    host_free: int,
) -> MemoryPlan:
    """Plan for so much memory.

    Args:
        needs: What the model needs.
        free: Bytes a process may take.
        device: Of which kind.
        longest: Tokens of the longest record, which is never split.
        max_tokens: Token budget of a micro-batch; None: to be chosen.
        host_free: As `host_share` gives it.

    Returns:
        The plan. Its total may be more than `free`: `least_plan` says whether training fits at all, and a budget that
        was given is kept.
    """
    fixed = needs.weights + needs.scratch + needs.adapter + needs.optimizer
    room = int(max(free - fixed, 0) * _SHARE_OF_ROOM[device.type])
    longest = on_grid(longest)
    budget = max_tokens or _default_tokens(needs, room, device, longest, host_free)
    batch = BatchShape(max(budget, longest), longest)
    step = StepPlan(budget, room, host_free)
    return _plan(needs, batch, needs.policy(batch, step), step)


def least_plan(needs: MemoryNeeds, longest: int, host_free: int) -> MemoryPlan:
    """Give the plan that takes least: the longest record alone, every layer computed again.

    Args:
        needs: What the model needs.
        longest: Tokens of the longest record.
        host_free: As `host_share` gives it.
    """
    batch = BatchShape(on_grid(longest), on_grid(longest))
    step = StepPlan(ROW_GRID, 0, host_free)
    return _plan(needs, batch, needs.least_policy(batch, host_free), step)


def check_memory(plan: MemoryPlan, free: int, device: torch.device) -> None:
    """Refuse what cannot fit.

    Args:
        plan: The least there is.
        free: Bytes a process may take.
        device: Where.

    Raises:
        DeviceError: It takes more than is free; the message is the plan.
    """
    if plan.total <= free:
        return
    raise DeviceError(
        f"training takes about {gib(plan.total)} GiB: {memory_parts(asdict(plan))} of the longest record "
        f"({plan.num_tokens:,} tokens); a process has {gib(free)} on {device.type}",
        code="E_MEMORY_PLAN",
        hint=_remedies(plan, device),
    )


def describe_plan(plan: MemoryPlan) -> str:
    """Say in a line what takes how much, and how many layers keep their activations."""
    fields = asdict(plan)
    return (
        f"about {gib(plan.total)} GiB of memory (estimate): {memory_parts(fields)}; "
        f"{layers_kept(fields)}"
    )


def process_share(device: torch.device, num_processes: int) -> int:
    """Give the bytes a process may take: all that is free on its own GPU, its share of a common memory."""
    return free_bytes(device) // (num_processes if device.type == "cpu" else 1)


def host_share(device: torch.device, num_processes: int) -> int:
    """Give the bytes of the host's memory in which a process may keep what a GPU has no room for."""
    if device.type == "cpu":
        return 0
    return int(SHARE_OF_HOST * process_share(torch.device("cpu"), num_processes))


def num_trainable(config: ModelConfig, spec: LoraSpec) -> int:
    """Give the number of trained parameters."""
    return spec.rank * sum(map(sum, spec.modules(config).values()))


def _plan(needs: MemoryNeeds, batch: BatchShape, policy: Policy, step: StepPlan) -> MemoryPlan:
    return MemoryPlan(
        weights=needs.weights,
        scratch=needs.scratch,
        adapter=needs.adapter,
        optimizer=needs.optimizer,
        activations=needs.activations(batch, policy),
        num_tokens=batch.num_tokens,
        max_tokens=step.max_tokens,
        num_layers=needs.num_layers,
        num_whole=policy.num_whole,
        host=host_bytes(needs.each, batch, policy, num_layers=needs.num_layers),
        room=step.room,
        host_room=step.host_room,
    )


def _default_tokens(
    needs: MemoryNeeds, room: int, device: torch.device, longest: int, host_free: int
) -> int:
    """Choose the token budget of a micro-batch, a multiple of 64 tokens."""

    def fitting(choose: Callable[[BatchShape], Policy], most: int) -> int:
        def needed(num_tokens: int) -> int:
            batch = BatchShape(num_tokens, longest)
            return needs.activations(batch, choose(batch))

        return bisect.bisect_right(range(ROW_GRID, most + 1, ROW_GRID), room, key=needed) * ROW_GRID

    whole = fitting(lambda _: Policy(needs.num_layers), _MOST_TOKENS[device.type])
    least = fitting(lambda batch: needs.least_policy(batch, host_free), _ENOUGH_TOKENS[device.type])
    return max(whole, least, ROW_GRID)


def _remedies(plan: MemoryPlan, device: torch.device) -> str:
    """Say what would change most, the largest part first."""
    advice = {
        "use --precision nf4 or a smaller model": plan.weights + plan.scratch,
        "lower --max-length": plan.activations,
        "lower --rank, name fewer --target-modules, use --optimizer adamw8bit": plan.adapter
        + plan.optimizer,
    }
    if device.type == "cuda" and not plan.host:
        advice["free memory of the host, where inputs of layers can be"] = 0
    return "; ".join(sorted(advice, key=lambda what: -advice[what]))
