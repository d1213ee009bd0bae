# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Log-prob, rank, entropy and margin of given tokens from hidden states, as a Triton kernel that keeps no logits.

Equations, and the values that are left of a part of the vocabulary, as in `linear_logprob_partials_triton`; the
reference is `linear_logprob`.

Dimensions: R rows, D hidden size, V vocabulary. Dtypes: hidden and head in bf16, fp16 or fp32; logits in fp32 with fp32
accumulation (no TF32); results fp64.
Memory traffic: the head once for every tile of rows, from the L2 cache for all but the first of them at a time; hidden
once for every tile of the vocabulary, from the cache too; at most 512 bytes of partial results a row.

Tiles of rows x at most 32 parts of the vocabulary are the grid: 1024 rows make 256 programs, and one tile of rows still
makes 32. A program walks through the tiles of its part; a tile's logits live in registers and are taken up by running
values (the online softmax of Milakov and Gimelshein 2018, arXiv 1805.02867). A row's bits depend on that row alone:
where parts begin depends on V and the GPU, never on R, and nothing is added atomically.

The targets' logits come first, to count larger ones. Their rows of the head are gathered and multiplied like a tile of
the vocabulary, by the same code in the same blocks, and the diagonal is kept: so they have the bits that their tile
will give them, and a token of equal weights never counts as larger. (Products with one row each would round
differently.)
Rejected: doing that at the start of each program, which saves a launch and costs each part one tile more of about 32.

On an H100, 4096 rows, D = 4096, V = 128,256: 67 % of the rate of large products. `linear_logprob_gpu` says where this
one is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fam_engine.kernels.launching import POINTER, Launch, Variant, capability_of, cdiv
from fam_engine.kernels.linear_logprob import LinearLogprobs
from fam_engine.kernels.linear_logprob_partials_triton import (
    LOWEST,
    Parts,
    add_logits,
    merge,
    store_part,
)


class _Blocks(NamedTuple):
    rows: int
    tokens: int
    depth: int
    num_warps: int
    num_stages: int
    has_tma: bool = False


# As Triton 3.9 compiles them for bf16, spilling nothing. Registers a thread and bytes of shared memory: 8.x 232 and
# 98,304; 9.0 106 and 98,328; 10.0 127 and 98,352; 12.0 234 and 98,304. On 9.0 and 10.0 two programs fit a
# multiprocessor so, and one multiplies while the other takes up logits. 128 x 256 x 64 is one program on 9.0, with 230
# registers and 196,640 bytes in 4 stages; without TMA it spills everywhere else. So does 128 x 128 with 4 warps.
# Loads through descriptors (TMA, from 9.0 on) save registers and addresses: without them 128 registers each. On 12.0
# they would need 186, but 8 bytes of stack as Triton 3.6 compiles them; on 8.x they would be loads without a pipeline.
_BLOCKS = {
    80: _Blocks(128, 128, 64, 8, 4),
    86: _Blocks(128, 128, 64, 8, 4),
    89: _Blocks(128, 128, 64, 8, 4),
    90: _Blocks(128, 128, 64, 8, 3, has_tma=True),
    100: _Blocks(128, 128, 64, 8, 3, has_tma=True),
    120: _Blocks(128, 128, 64, 8, 4),
}
# For fp32, without matrix units. Not made for speed.
_BLOCKS_FP32 = _Blocks(64, 64, 32, 8, 2)
# Parts of the vocabulary, at most.
_MAX_PARTS = 32
# [D, V] of Qwen2.5-0.5B, Llama-3.2 1B and 3B, Llama-3.1 8B, Qwen3 8B.
_SHIPPED = ((896, 151_936), (2048, 128_256), (3072, 128_256), (4096, 128_256), (4096, 151_936))


@triton.jit
def _product(
    hidden,
    first_row,
    num_rows,
    head,
    first_token,
    num_tokens,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_TMA: tl.constexpr,
):
    """Give a tile of logits [BLOCK_R, BLOCK_V]; what is past the last row or token is of no use."""
    z = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    if HAS_TMA:
        for start in range(0, D, BLOCK_D):
            hidden_tile = hidden.load([first_row, start])
            head_tile = head.load([first_token, start]).T
            z = tl.dot(hidden_tile, head_tile, z, input_precision="ieee")
    else:
        # The last row stands in for those past it, which costs less than a mask for every load.
        row = tl.minimum(tl.arange(0, BLOCK_R), num_rows - 1 - first_row)
        token = tl.minimum(tl.arange(0, BLOCK_V), num_tokens - 1 - first_token)
        depth = tl.arange(0, BLOCK_D)
        hidden += tl.cast(first_row, tl.int64) * D + (row[:, None] * D + depth[None, :])
        head += tl.cast(first_token, tl.int64) * D + (token[None, :] * D + depth[:, None])
        for start in range(0, D, BLOCK_D):
            if D % BLOCK_D == 0:
                hidden_tile = tl.load(hidden)
                head_tile = tl.load(head)
            else:
                inside = start + depth < D
                hidden_tile = tl.load(hidden, mask=inside[None, :], other=0.0)
                head_tile = tl.load(head, mask=inside[:, None], other=0.0)
            z = tl.dot(hidden_tile, head_tile, z, input_precision="ieee")
            hidden += BLOCK_D
            head += BLOCK_D
    return z


@triton.jit(do_not_specialize=["num_rows"])
def _target_logits(
    hidden,
    wanted,
    target_logits,
    num_rows,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_TMA: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_R
    z = _product(
        hidden, first, num_rows, wanted, first, num_rows, D, BLOCK_R, BLOCK_V, BLOCK_D, HAS_TMA
    )
    is_own = tl.arange(0, BLOCK_R)[:, None] == tl.arange(0, BLOCK_V)[None, :]
    own = tl.sum(tl.where(is_own, z, 0.0), 1)
    row = first + tl.arange(0, BLOCK_R)
    tl.store(target_logits + row, own, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def _parts(
    hidden,
    head,
    targets,
    target_logits,
    partials,
    num_rows,
    D: tl.constexpr,
    V: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILES_PER_PART: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_TMA: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_R
    part = tl.program_id(1)
    row = first + tl.arange(0, BLOCK_R)
    inside = row < num_rows
    target = tl.load(targets + row, mask=inside, other=0).to(tl.int32)
    target_logit = tl.load(target_logits + row, mask=inside, other=0.0)
    m = tl.full([BLOCK_R], LOWEST, tl.float32)
    s = tl.zeros([BLOCK_R], tl.float32)
    w = tl.zeros([BLOCK_R], tl.float32)
    n = tl.zeros([BLOCK_R], tl.float32)

    begin = part * (TILES_PER_PART * BLOCK_V)
    for token in range(begin, min(V, begin + TILES_PER_PART * BLOCK_V), BLOCK_V):
        z = _product(hidden, first, num_rows, head, token, V, D, BLOCK_R, BLOCK_V, BLOCK_D, HAS_TMA)
        column = token + tl.arange(0, BLOCK_V)[None, :]
        is_other = (column < V) & (column != target[:, None])
        m, s, w, n = add_logits(z, is_other, target_logit, m, s, w, n)

    store_part(partials, part, row, inside, m, s, w, n, num_rows, NUM_PARTS)


def linear_logprob(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> LinearLogprobs:
    """Compute the facts of one target a row.

    Args:
        hidden_RD: [R, D] in bf16, fp16 or fp32, contiguous; rows a multiple of 16 bytes. A row's bits are
            independent of the others.
        head_VD: [V, D] of the same dtype, contiguous.
        targets_R: int64[R], ids below V.

    Returns:
        The facts, on the same device.

    Raises:
        IndexError: An id is not below V (on a GPU a device-side assertion, as in torch).
    """
    num_rows, width = hidden_RD.shape
    assert hidden_RD.dtype == head_VD.dtype
    assert hidden_RD.is_contiguous()
    assert head_VD.is_contiguous()
    blocks = _blocks(capability_of(hidden_RD.device), hidden_RD.dtype)
    launch = _launch(blocks, width)
    vocab_launch = _vocab_launch(blocks, width, head_VD.shape[0])
    num_parts = vocab_launch.constants["NUM_PARTS"]
    parts = Parts.empty(num_parts, num_rows, device=hidden_RD.device)
    num_tiles = cdiv(num_rows, blocks.rows)

    wanted_RD = head_VD.index_select(0, targets_R)
    own = parts.target_logit_R
    hidden = _operand(hidden_RD, blocks, blocks.rows)
    wanted, head = (_operand(matrix, blocks, blocks.tokens) for matrix in (wanted_RD, head_VD))
    _target_logits[(num_tiles,)](hidden, wanted, own, num_rows, **launch.keywords)
    arguments = (hidden, head, targets_R, own, parts.values_4SR, num_rows)
    _parts[(num_tiles, num_parts)](*arguments, **vocab_launch.keywords)
    return merge(parts)


def _operand(matrix: torch.Tensor, blocks: _Blocks, rows: int) -> torch.Tensor | TensorDescriptor:
    """Give what a kernel takes for a matrix: itself, or a descriptor of its blocks."""
    if not blocks.has_tma:
        return matrix
    return TensorDescriptor.from_tensor(matrix, [rows, blocks.depth])


def _blocks(capability: int, dtype: torch.dtype) -> _Blocks:
    blocks = _BLOCKS_FP32 if dtype == torch.float32 else _BLOCKS[capability]
    assert blocks.tokens >= blocks.rows, "the diagonal of a tile has to reach every row"
    return blocks


def _launch(blocks: _Blocks, width: int) -> Launch:
    """Give what both kernels are launched with; the logits' bits depend on it."""
    constants = {
        "D": width,
        "BLOCK_R": blocks.rows,
        "BLOCK_V": blocks.tokens,
        "BLOCK_D": blocks.depth,
        "HAS_TMA": blocks.has_tma,
    }
    return Launch(constants, num_warps=blocks.num_warps, num_stages=blocks.num_stages)


def _vocab_launch(blocks: _Blocks, width: int, vocab_size: int) -> Launch:
    launch = _launch(blocks, width)
    num_tiles = cdiv(vocab_size, blocks.tokens)
    tiles_per_part = cdiv(num_tiles, _MAX_PARTS)
    split = {
        "V": vocab_size,
        "NUM_PARTS": cdiv(num_tiles, tiles_per_part),
        "TILES_PER_PART": tiles_per_part,
    }
    return replace(launch, constants={**launch.constants, **split})


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    half, single = torch.bfloat16, torch.float32
    for width in sorted({width for width, _ in _SHIPPED}):
        yield _target_variant(capability, half, width)
    for width, vocab_size in _SHIPPED:
        yield _variant(capability, half, width, vocab_size)
    yield _target_variant(capability, single, _SHIPPED[0][0])
    yield _variant(capability, single, *_SHIPPED[0])


def _target_variant(capability: int, dtype: torch.dtype, width: int) -> Variant:
    blocks = _blocks(capability, dtype)
    return Variant(
        name=f"linear_logprob targets {POINTER[dtype][1:]} {width}",
        kernel=_target_logits,
        arguments={
            "hidden": _kind(dtype, blocks, blocks.rows),
            "wanted": _kind(dtype, blocks, blocks.tokens),
            "target_logits": POINTER[torch.float32],
            "num_rows": "i32",
        },
        launch=_launch(blocks, width),
        uses_matrix_units=dtype != torch.float32,
    )


def _variant(capability: int, dtype: torch.dtype, width: int, vocab_size: int) -> Variant:
    blocks = _blocks(capability, dtype)
    return Variant(
        name=f"linear_logprob {POINTER[dtype][1:]} {width}x{vocab_size}",
        kernel=_parts,
        arguments={
            "hidden": _kind(dtype, blocks, blocks.rows),
            "head": _kind(dtype, blocks, blocks.tokens),
            "targets": POINTER[torch.int64],
            "target_logits": POINTER[torch.float32],
            "partials": POINTER[torch.float32],
            "num_rows": "i32",
        },
        launch=_vocab_launch(blocks, width, vocab_size),
        uses_matrix_units=dtype != torch.float32,
    )


def _kind(dtype: torch.dtype, blocks: _Blocks, rows: int) -> str:
    """Give the type of `_operand`'s result."""
    if not blocks.has_tma:
        return POINTER[dtype]
    return f"tensordesc<{POINTER[dtype][1:]}[{rows}, {blocks.depth}]>"
