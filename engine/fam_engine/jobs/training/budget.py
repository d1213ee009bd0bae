"""How much memory training takes, and how many tokens of a micro-batch fit what is free.

In: the model's shape, the adapter's form. Out: bytes, and the default of `--max-tokens-per-batch`. Estimates, printed
as such; a micro-batch that does not fit all the same is halved by the step that runs it. What cannot fit at all, the
weights and the longest record on one card, is refused with the plan before the weights are read: there is no splitting
of a model over cards here. Layers are always computed again in the backward pass, so there is nothing left to turn on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fam_engine.errors import DeviceError
from fam_engine.jobs.training.optim import OptimizerName
from fam_engine.model.checkpoint import linear_shapes
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import LoraSpec
from fam_engine.model.memory import free_bytes, weight_bytes

# Beyond these a larger micro-batch no longer makes the matrix products faster.
_MOST_TOKENS = {"cpu": 2048, "cuda": 16384}
_SHARE_OF_FREE = 0.4
# Of a parameter: value and gradient in fp32, then two moments.
_VALUE_BYTES = 8
_MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2}


@dataclass(frozen=True)
class MemoryPlan:
    """What one process needs, bytes, all estimated.

    Attributes:
        weights: Of the frozen model, one matrix's scratch included.
        adapter: The trained parameters and their gradients.
        optimizer: Its moments.
        activations: Of one micro-batch: every layer's input, and one layer and the rows of the head computed
            again; never logits of the whole vocabulary.
        num_tokens: Those of the micro-batch.
    """

    weights: int
    adapter: int
    optimizer: int
    activations: int
    num_tokens: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapter + self.optimizer + self.activations


def plan_memory(
    config: ModelConfig,
    spec: LoraSpec,
    num_tokens: int,
    *,
    precision: str,
    compute_dtype: torch.dtype,
    optimizer: OptimizerName,
) -> MemoryPlan:
    """Estimate what training by micro-batches of so many tokens takes.

    Args:
        config: The model's shape.
        spec: The adapter's form.
        num_tokens: Of a micro-batch.
        precision: Of the weights.
        compute_dtype: Of the activations.
        optimizer: Which one.
    """
    trained = num_trainable(config, spec)
    return MemoryPlan(
        weights=weight_bytes(config, precision, compute_dtype),
        adapter=trained * _VALUE_BYTES,
        optimizer=trained * _MOMENT_BYTES[optimizer],
        activations=num_tokens * token_bytes(config, compute_dtype),
        num_tokens=num_tokens,
    )


def check_memory(plan: MemoryPlan, free: int, device: torch.device) -> None:
    """Refuse what cannot fit.

    Args:
        plan: With the longest record alone in a micro-batch, the least there is.
        free: Bytes a process may take.
        device: Where.

    Raises:
        DeviceError: It takes more than is free; the message is the plan.
    """
    if plan.total <= free:
        return
    raise DeviceError(
        f"training takes about {_gib(plan.total)} GiB: weights {_gib(plan.weights)}, adapter "
        f"{_gib(plan.adapter)}, optimizer {_gib(plan.optimizer)}, activations of the longest record "
        f"({plan.num_tokens:,} tokens) {_gib(plan.activations)}; a process has {_gib(free)} on {device.type}",
        code="E_MEMORY_PLAN",
        hint=_remedies(plan),
    )


def _remedies(plan: MemoryPlan) -> str:
    """Say what would change most, the largest part first."""
    advice = {
        "use --precision nf4 or a smaller model": plan.weights,
        "lower --max-length": plan.activations,
        "lower --rank, name fewer --target-modules, use --optimizer adamw8bit": plan.adapter
        + plan.optimizer,
    }
    return "; ".join(sorted(advice, key=lambda what: -advice[what]))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}"


def process_share(device: torch.device, num_processes: int) -> int:
    """Give the bytes a process may take: all that is free on its own GPU, its share of a common memory."""
    return free_bytes(device) // (num_processes if device.type == "cpu" else 1)


def num_trainable(config: ModelConfig, spec: LoraSpec) -> int:
    """Give the number of trained parameters."""
    shapes = linear_shapes(config)
    sizes = (sum(shapes[module.split(".", 3)[3]]) for module in spec.modules(config))
    return spec.rank * sum(sizes)


def token_bytes(config: ModelConfig, compute_dtype: torch.dtype) -> int:
    """Give the bytes a token of a micro-batch takes at the peak of its backward pass."""
    c = config
    qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    # Kept: every layer's input. Computed again, of one layer: fp32 copies for norms, LoRA, SwiGLU.
    kept = c.num_layers * c.hidden_size * compute_dtype.itemsize
    layer = 4 * (12 * c.hidden_size + 4 * qkv + 10 * c.intermediate_size)
    head = 4 * (2 * c.hidden_size + 4 * (c.vocab_size // 1024 + 1))
    return kept + layer + head


def default_tokens(
    config: ModelConfig,
    device: torch.device,
    compute_dtype: torch.dtype,
    num_processes: int = 1,
) -> int:
    """Give the micro-batch that fits comfortably in what is free now, a multiple of 64 tokens."""
    free = process_share(device, num_processes)
    fitting = int(free * _SHARE_OF_FREE) // token_bytes(config, compute_dtype)
    return max(64, min(fitting, _MOST_TOKENS[device.type]) // 64 * 64)
