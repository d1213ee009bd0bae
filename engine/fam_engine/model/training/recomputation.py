"""What layers keep of a micro-batch, and where, as memory allows: from shapes alone.

In: the model's shape, the adapter's form, tokens, bytes that are free on the device and in the host's memory. Out: a
`Policy`, and the scratch memory of the step. The same input gives the same policy, on any machine.

A value kept saves the same arithmetic in whichever layer it is kept, so there is nothing to choose but how many keep
WHOLE (see `layer`). At the peak every layer holds its input and S of `down`; and either the head works beside what k
layers hold, or the backward pass of one layer, which holds the rest by then, computed again if need be:

    bytes = constant + T (L inner + I input) + max(T k whole + T head + tile, T max(k, 1) whole + T working)

I is L; or, where that is too much with no layer whole, all inputs but those of the whole layers are in the host's
memory (`layer_inputs`), and at most one of them is on its way back. That is how long documents train: at 64 k tokens
of Llama-3.1-8B inputs are 16 GiB, and all the rest of the step, beside weights and adapter, 10.

An upper bound as to rows: it counts the last layer and the head for all T tokens. It leaves out the 128 rows that flash
attention's sums have more for each sequence, which sequences of 64 tokens hide behind the MLP. It knows nothing of
allocators that leave gaps; what is free should be given less a margin.

Flash attention sums gradients of queries in fp32, and to do so in a fixed order takes several copies of them:
ceil(multiprocessors / (sequences * H)), as torch's `flash_api.cpp` has it. A lone document of 8B has five on an H100.

Measured on an H100 (8B, rank 16), the most that torch's allocator held, against this with weights, scratch memory,
adapter and optimizer: 2,048 tokens and all layers whole 13.25 GiB (13.02), 4,096 19.08 (18.89), 16,384 54.08 (54.14),
and with 6 of 32 whole 19.84 (19.93); each with 0.22 GiB of scratch memory that steps no longer take. Inputs in the
host's memory and lone long documents were not measured yet.

Letters: T tokens, L layers, k whole ones, H query heads.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Final

import torch

from fam_engine.data.packing import on_grid
from fam_engine.model.checkpoint import SOURCES, merged_shapes
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import LoraSpec
from fam_engine.model.training.augmented import RANK_ALIGNMENT
from fam_engine.model.training.forward import attention_dtype

# Wide copies of chunks of rows; on a CPU also tiles of logits and of the head in fp32.
CONSTANT_BYTES: Final = 64 << 20
# The tile of logits of `linear_cross_entropy` on a GPU: so many bytes or so many rows, whichever is more.
_TILE_BYTES: Final = 640 << 20
_TILE_ROWS: Final = 1024
# Flash attention's copies of a head are multiples of the first wide, of the second beyond the third.
_HEAD_DIM_GRIDS: Final = (32, 64, 128)


@dataclass(frozen=True)
class Policy:
    """What layers keep for their backward pass, and where; it changes no bit of any gradient.

    Attributes:
        num_whole: How many layers keep everything, the last ones; the others keep their input.
        offload: Whether those inputs are kept in the host's memory, but for the last layer's.
    """

    num_whole: int
    offload: bool = False

    def num_on_host(self, num_layers: int) -> int:
        """Give how many layers, the first ones, have their inputs in the host's memory."""
        return num_layers - max(min(self.num_whole, num_layers), 1) if self.offload else 0


@dataclass(frozen=True)
class TokenBytes:
    """What a token takes, bytes.

    Attributes:
        input: A layer's input.
        inner: S of `down`, which every layer keeps on the device.
        whole: What a layer that keeps everything has beside these two.
        working: The backward pass of one layer, beside what it kept, but for attention's.
        attention: That of its attention, without the sums of gradients of queries.
        query_sums: One copy of these sums.
        query_copies: How many copies a lone sequence has, not rounded; n sequences have an n-th.
        head: Losses and their gradient, beside the tile.
        logits: In the tile of logits.
        tile: All of that tile at most; 0 on a CPU, whose tile is counted with what is constant.
    """

    input: int
    inner: int
    whole: int
    working: int
    attention: int
    query_sums: int
    query_copies: float
    head: int
    logits: int
    tile: int

    def backward(self, num_sequences: int) -> int:
        """Give what the backward pass of a layer takes beside what it kept, in a batch of so many sequences."""
        copies = math.ceil(self.query_copies / num_sequences)
        return max(self.working, self.attention + copies * self.query_sums)


@dataclass(frozen=True)
class BatchShape:
    """What matters of a micro-batch.

    Attributes:
        num_tokens: Its tokens.
        longest: Tokens of its longest sequence, or more.
    """

    num_tokens: int
    longest: int

    @property
    def num_sequences(self) -> int:
        """The fewest sequences it can have."""
        return -(-self.num_tokens // min(self.longest, self.num_tokens))


def token_bytes(
    config: ModelConfig,
    spec: LoraSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    num_multiprocessors: int,
) -> TokenBytes:
    """Give what a token takes.

    Keys of prompts that siblings share are gathered for attention on a GPU; they are not counted.

    Args:
        config: The model's shape.
        spec: The adapter's form.
        dtype: The compute dtype.
        device: Where.
        num_multiprocessors: Of the GPU; without meaning on a CPU.
    """
    c, size, wide = config, dtype.itemsize, torch.promote_types(dtype, torch.float32).itemsize
    on_gpu, in_attention = device.type == "cuda", attention_dtype(dtype, device)
    heads, features = c.num_attention_heads, c.intermediate_size
    mixed = heads * c.head_dim
    qkv = mixed + 2 * c.num_key_value_heads * c.head_dim
    ranks = {name: _ranks(spec, sources) for name, sources in SOURCES.items()}
    stream = c.hidden_size
    gate_up = 2 * features + ranks["gate_up"]
    whole = qkv + mixed + ranks["o"] + stream + gate_up
    # Gradient of the output, it with dS beside it, gradient of the activation.
    mlp = 2 * stream + features + 2 * ranks["down"]
    # Gradient of the stream, it with dS, that of the mixed values; gradients of q, k, v; gate and up
    # are given up by then.
    attention = 2 * stream + ranks["o"] + mixed - gate_up
    attention_bytes = size * attention + in_attention.itemsize * qkv
    if in_attention != dtype:
        attention_bytes += in_attention.itemsize * (qkv + 2 * mixed)
    if on_gpu:
        # Flash attention has gradients of keys and values for each query head.
        attention_bytes += 2 * size * mixed
    # The last three are gone when gradients of q, k, v are written beside their dS, and x is normed.
    products = size * (3 * stream + qkv + 2 * ranks["qkv"] - gate_up) + in_attention.itemsize * qkv
    logits = wide * c.vocab_size
    return TokenBytes(
        input=size * stream,
        inner=size * ranks["down"],
        whole=size * whole + wide * heads,
        working=max(size * mlp, products),
        attention=attention_bytes,
        query_sums=wide * heads * _copied_head_dim(c.head_dim) if on_gpu else 0,
        query_copies=num_multiprocessors / heads,
        head=stream * (3 * size + 2 * wide),
        logits=logits,
        tile=max(_TILE_BYTES, _TILE_ROWS * logits) if on_gpu else 0,
    )


def activation_bytes(
    each: TokenBytes, batch: BatchShape, policy: Policy, *, num_layers: int
) -> int:
    """Give the memory of a micro-batch at its peak, on the device.

    Args:
        each: What a token takes.
        batch: The micro-batch.
        policy: What layers keep.
        num_layers: The model's layers.
    """
    num_tokens, num_whole = batch.num_tokens, min(policy.num_whole, num_layers)
    on_host = policy.num_on_host(num_layers)
    num_inputs = num_layers - on_host + min(on_host, 1)
    kept = num_layers * each.inner + num_inputs * each.input
    head = num_tokens * (num_whole * each.whole + each.head) + min(
        num_tokens * each.logits, each.tile
    )
    backward = num_tokens * (max(num_whole, 1) * each.whole + each.backward(batch.num_sequences))
    return CONSTANT_BYTES + num_tokens * kept + max(head, backward)


def host_bytes(each: TokenBytes, batch: BatchShape, policy: Policy, *, num_layers: int) -> int:
    """Give what a micro-batch takes of the host's memory; for the arguments see `activation_bytes`."""
    return policy.num_on_host(num_layers) * batch.num_tokens * each.input


def choose_policy(
    each: TokenBytes, batch: BatchShape, *, num_layers: int, free: int, host_free: int
) -> Policy:
    """Choose what layers keep: inputs go to the host where they must, then as many layers are whole as fit.

    Args:
        each: What a token takes.
        batch: The micro-batch.
        num_layers: The model's layers.
        free: Bytes for activations: what is free beside weights, scratch memory, the adapter, its
            gradients and the optimizer.
        host_free: Bytes of the host's memory that inputs may take; 0: they stay.

    Returns:
        The policy; the one that takes least where not even that fits.
    """
    least = least_policy(each, batch, num_layers=num_layers, host_free=host_free)
    fits = activation_bytes(each, batch, Policy(0), num_layers=num_layers) <= free
    offload = least.offload and not fits

    def needed(num_whole: int) -> int:
        return activation_bytes(each, batch, Policy(num_whole, offload), num_layers=num_layers)

    fitting = bisect.bisect_right(range(num_layers + 1), free, key=needed)
    return Policy(max(fitting - 1, 0), offload)


def least_policy(each: TokenBytes, batch: BatchShape, *, num_layers: int, host_free: int) -> Policy:
    """Give the policy that takes least of the device's memory; for the arguments see `choose_policy`."""
    policy = Policy(0, offload=True)
    fits = host_bytes(each, batch, policy, num_layers=num_layers) <= host_free
    # Of two layers one input is kept, and the other is on its way back beside it.
    return Policy(0, offload=fits and num_layers > 2)


def scratch_bytes(config: ModelConfig, spec: LoraSpec, *, dtype: torch.dtype) -> int:
    """Give the memory in which one matrix at a time stands beside its adapter (`augmented`).

    Args:
        config: The model's shape.
        spec: The adapter's form.
        dtype: The compute dtype.
    """
    sizes = []
    for name, (n, k) in merged_shapes(config).items():
        r = _ranks(spec, SOURCES[name])
        sizes.append(max(n * (k + r), (n + r) * k))
    return max(sizes) * dtype.itemsize


def _ranks(spec: LoraSpec, sources: tuple[str, ...]) -> int:
    """Give the columns of S of a merged matrix."""
    ranks = spec.rank * sum(source.split(".")[1] in spec.target_modules for source in sources)
    return on_grid(ranks, RANK_ALIGNMENT)


def _copied_head_dim(head_dim: int) -> int:
    small, large, limit = _HEAD_DIM_GRIDS
    return on_grid(head_dim, small if head_dim <= limit else large)
