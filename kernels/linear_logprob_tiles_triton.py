# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Log-prob, rank, entropy and margin of given tokens from hidden states: tiles by cuBLAS, read by a Triton kernel.

Equations, and the values that are left of a part of the vocabulary, as in `linear_logprob_partials_triton`; the
reference is `linear_logprob`. The alternative to `linear_logprob_triton` where cuBLAS multiplies that much faster.

Dimensions: R rows, D hidden size, V vocabulary, C columns of a tile, at most 8192. Dtypes: hidden and head in bf16,
fp16 or fp32; logits in fp32, by `torch.mm(..., out_dtype=torch.float32)`, which CPUs don't have: there the operands are
brought to fp32 (for tests; `linear_logprob` is the CPU path). No bf16 logits.
Memory: one tile of 1024 x C logits, 32 MiB at most, so that it may stay in the L2 cache of larger GPUs, and C x D of
the head for the targets' logits. Traffic: the head once every 1024 rows, 8 bytes a logit.

Every product has the same shape: rows are filled up to 1024, and the last tile begins C columns before the end, where
the columns seen already are left out. So cuBLAS uses one kernel for all, and a row's bits depend neither on R nor on
its neighbours. The targets' logits, which come first, are the diagonal of a product of that shape with their rows of
the head: so they have the bits that their tile will give them, and a token of equal weights never counts as larger.
That cuBLAS does so is a test on a GPU, which an H100 passes; 69 % of the rate of large products there
(4096 rows, D = 4096, V = 128,256).
Rejected: tiles of another shape at the end and a smaller product for the targets, for which cuBLAS may choose another
order of sums.

One program takes up one row of a tile, all of it in registers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv
from fam_engine.kernels.linear_logprob import LinearLogprobs
from fam_engine.kernels.linear_logprob_partials_triton import (
    LOWEST,
    Parts,
    add_logits,
    merge,
    store_part,
)
from fam_engine.kernels.mm_fp32 import mm_fp32

# Rows of a product: enough for it to be bound by arithmetic, not by reading the head, on every GPU known here.
ROW_TILE = 1024
# Columns of a tile, at most; they fit a program's registers.
VOCAB_TILE = 8192
# Columns come in multiples of this, for the alignment of the tiles.
_COLUMN_GRID = 64
# Vocabularies of Qwen2.5 and Qwen3, Llama-3.
_SHIPPED = (151_936, 128_256)


@triton.jit(do_not_specialize=["first_row", "num_rows", "part", "begin", "seen"])
def _fold(
    logits,
    targets,
    target_logits,
    partials,
    first_row,
    num_rows,
    part,
    begin,
    seen,
    C: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    place = tl.program_id(0)
    row = tl.cast(first_row, tl.int64) + place + tl.arange(0, 1)
    column = tl.arange(0, BLOCK_C)
    z = tl.load(logits + place * C + column, mask=column < C, other=0.0)[None, :]
    token = begin + column
    is_other = (column < C) & (token >= seen) & (token != tl.load(targets + row))
    m = tl.full([1], LOWEST, tl.float32)
    none = tl.zeros([1], tl.float32)
    target_logit = tl.load(target_logits + row)
    m, s, w, n = add_logits(z, is_other[None, :], target_logit, m, none, none, none)
    store_part(partials, part, row, row < num_rows, m, s, w, n, num_rows, NUM_PARTS)


def linear_logprob(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> LinearLogprobs:
    """Compute the facts of one target a row.

    Args:
        hidden_RD: [R, D] in bf16, fp16 or fp32. A row's bits are independent of the others.
        head_VD: [V, D] of the same dtype.
        targets_R: int64[R], ids below V.

    Returns:
        The facts, on the same device.

    Raises:
        IndexError: An id is not below V (on a GPU a device-side assertion, as in torch).
    """
    num_rows, vocab_size = hidden_RD.shape[0], head_VD.shape[0]
    columns = _columns(vocab_size)
    parts = Parts.empty(cdiv(vocab_size, columns), num_rows, device=hidden_RD.device)
    logits = hidden_RD.new_empty((ROW_TILE, columns), dtype=torch.float32)
    for first in range(0, num_rows, ROW_TILE):
        hidden = _filled_up(hidden_RD[first : first + ROW_TILE])
        own = parts.target_logit_R[first : first + ROW_TILE]
        _write_target_logits(hidden, head_VD, targets_R[first : first + ROW_TILE], logits, out=own)
        for part, seen in enumerate(range(0, vocab_size, columns)):
            begin = min(seen, vocab_size - columns)
            mm_fp32(hidden, head_VD[begin : begin + columns].t(), out=logits)
            _fold[(own.shape[0],)](
                logits,
                targets_R,
                parts.target_logit_R,
                parts.values_4SR,
                first,
                num_rows,
                part,
                begin,
                seen,
                **_launch(vocab_size).keywords,
            )
    return merge(parts)


def _columns(vocab_size: int) -> int:
    """Give C, the same for all tiles of a vocabulary and so that few columns are made twice."""
    num_tiles = -(-vocab_size // VOCAB_TILE)
    share = -(-vocab_size // num_tiles)
    return min(vocab_size, -(-share // _COLUMN_GRID) * _COLUMN_GRID)


def _filled_up(hidden: torch.Tensor) -> torch.Tensor:
    """Give [ROW_TILE, D], with zeros below."""
    if hidden.shape[0] == ROW_TILE:
        return hidden
    full = hidden.new_zeros((ROW_TILE, hidden.shape[1]))
    full[: hidden.shape[0]] = hidden
    return full


def _write_target_logits(
    hidden: torch.Tensor,
    head_VD: torch.Tensor,
    targets: torch.Tensor,
    logits: torch.Tensor,
    *,
    out: torch.Tensor,
) -> None:
    """Write a row tile's logits of its targets; `logits` is memory for a tile."""
    columns = logits.shape[1]
    wanted = head_VD.new_zeros((columns, head_VD.shape[1]))
    for first, some in zip(range(0, ROW_TILE, columns), targets.split(columns), strict=False):
        wanted[: some.shape[0]] = head_VD.index_select(0, some)
        mm_fp32(hidden, wanted.t(), out=logits)
        out[first : first + columns] = logits[first:].diagonal()[: some.shape[0]]


def _launch(vocab_size: int) -> Launch:
    columns = _columns(vocab_size)
    constants = {
        "C": columns,
        "NUM_PARTS": cdiv(vocab_size, columns),
        "BLOCK_C": triton.next_power_of_2(columns),
    }
    return Launch(constants, num_warps=8)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    arguments = {
        "logits": POINTER[torch.float32],
        "targets": POINTER[torch.int64],
        "target_logits": POINTER[torch.float32],
        "partials": POINTER[torch.float32],
        "first_row": "i32",
        "num_rows": "i32",
        "part": "i32",
        "begin": "i32",
        "seen": "i32",
    }
    for vocab_size in _SHIPPED:
        launch = _launch(vocab_size)
        yield Variant(
            name=f"linear_logprob tile {vocab_size}",
            kernel=_fold,
            arguments=arguments,
            launch=launch,
            values=launch.constants["C"],
        )
