"""How many layers can keep their activations: what memory a micro-batch takes, from shapes alone.

In: the model's shape, the adapter's form, tokens, bytes that are free. Out: the number of layers that
keep WHOLE (see `layer`), and the scratch memory of the step. The same input gives the same number, on any machine.

A value kept saves the same arithmetic in whichever layer it is kept, so there is nothing to choose but
how many. At the peak every layer holds its input; k layers, or the one computed again, hold the rest;
and either the head or one layer's backward pass has its working memory:

    bytes = constant + T (L input + max(k, 1) whole) + max(T head + tile, T working)

An upper bound as to rows: it counts the last layer and the head for all T tokens. It knows nothing of
allocators that leave gaps; what is free should be given less a margin.

Measured on an H100 (8B, rank 16), the most that torch's allocator held, against this with weights, scratch memory,
adapter and optimizer: 2,048 tokens and all layers whole 13.25 GiB (13.02), 4,096 19.08 (18.89), 16,384 54.08 (54.14),
and with 6 of 32 whole 19.84 (19.93).

Letters: T tokens, L layers, k whole ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from fam_engine.model.checkpoint import linear_shapes
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import SOURCES, LoraSpec
from fam_engine.model.training.augmented import RANK_ALIGNMENT
from fam_engine.model.training.forward import attention_dtype

# Wide copies of chunks of rows; on a CPU also tiles of logits and of the head in fp32.
CONSTANT_BYTES: Final = 64 << 20
# The tile of logits of `linear_cross_entropy` on a GPU: so many bytes or so many rows, whichever is more.
_TILE_BYTES: Final = 640 << 20
_TILE_ROWS: Final = 1024


@dataclass(frozen=True)
class TokenBytes:
    """What a token takes, bytes.

    Attributes:
        input: Of a layer that keeps its input, and S of `down`, only.
        whole: Of a layer that keeps everything, beside its input.
        working: Of the backward pass of one layer, beside what it kept.
        head: Of losses and their gradient, beside the tile.
        logits: In the tile of logits.
        tile: All of that tile at most; 0 on a CPU, whose tile is counted with what is constant.
    """

    input: int
    whole: int
    working: int
    head: int
    logits: int
    tile: int


def token_bytes(
    config: ModelConfig, spec: LoraSpec, *, dtype: torch.dtype, device: torch.device
) -> TokenBytes:
    """Give what a token takes.

    Keys of prompts that siblings share are gathered for attention on a GPU; they are not counted.

    Args:
        config: The model's shape.
        spec: The adapter's form.
        dtype: The compute dtype.
        device: Where.
    """
    c, size, wide = config, dtype.itemsize, torch.promote_types(dtype, torch.float32).itemsize
    on_gpu, in_attention = device.type == "cuda", attention_dtype(dtype, device)
    mixed, features = c.num_attention_heads * c.head_dim, c.intermediate_size
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
        # Flash attention sums gradients of queries in fp32, and has those of keys and values for each query head.
        attention_bytes += (wide + 2 * size) * mixed
    # The last three are gone when gradients of q, k, v are written beside their dS, and x is normed.
    products = size * (3 * stream + qkv + 2 * ranks["qkv"] - gate_up) + in_attention.itemsize * qkv
    logits = wide * c.vocab_size
    return TokenBytes(
        # S of `down` is kept with it.
        input=size * (stream + ranks["down"]),
        whole=size * whole + wide * c.num_attention_heads,
        working=max(size * mlp, attention_bytes, products),
        head=stream * (3 * size + 2 * wide),
        logits=logits,
        tile=max(_TILE_BYTES, _TILE_ROWS * logits) if on_gpu else 0,
    )


def activation_bytes(each: TokenBytes, *, num_layers: int, num_tokens: int, num_whole: int) -> int:
    """Give the memory of a micro-batch at its peak.

    Args:
        each: What a token takes.
        num_layers: The model's layers.
        num_tokens: Of the micro-batch.
        num_whole: Layers that keep everything.
    """
    tile = min(num_tokens * each.logits, each.tile)
    kept = num_tokens * (num_layers * each.input + max(num_whole, 1) * each.whole)
    return CONSTANT_BYTES + kept + max(num_tokens * each.head + tile, num_tokens * each.working)


def whole_layers(each: TokenBytes, *, num_layers: int, num_tokens: int, free: int) -> int:
    """Give how many layers can keep everything.

    Args:
        each: What a token takes.
        num_layers: The model's layers.
        num_tokens: Of the micro-batch.
        free: Bytes for activations: what is free beside weights, scratch memory, the adapter, its
            gradients and the optimizer.

    Returns:
        0 to `num_layers`; 0 also where not even that fits.
    """
    one = activation_bytes(each, num_layers=num_layers, num_tokens=num_tokens, num_whole=1)
    if free < one:
        return 0
    return min(num_layers, 1 + (free - one) // (num_tokens * each.whole))


def scratch_bytes(config: ModelConfig, spec: LoraSpec, *, dtype: torch.dtype) -> int:
    """Give the memory in which one matrix at a time stands beside its adapter (`augmented`).

    Args:
        config: The model's shape.
        spec: The adapter's form.
        dtype: The compute dtype.
    """
    shapes = linear_shapes(config)
    sizes = []
    for sources in SOURCES.values():
        n, k = sum(shapes[source][0] for source in sources), shapes[sources[0]][1]
        r = _ranks(spec, sources)
        sizes.append(max(n * (k + r), (n + r) * k))
    return max(sizes) * dtype.itemsize


def _ranks(spec: LoraSpec, sources: tuple[str, ...]) -> int:
    """Give the columns of S of a merged matrix."""
    ranks = spec.rank * sum(source.split(".")[1] in spec.target_modules for source in sources)
    return -(-ranks // RANK_ALIGNMENT) * RANK_ALIGNMENT
