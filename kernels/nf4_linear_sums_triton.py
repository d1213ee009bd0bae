# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What becomes of the sums of `nf4_linear_triton.py`, as a Triton kernel: of all sources of a merged matrix at once.

Equation, for each source, s the splits of K:

    y = sum_s partial_s + scaling * (sum_s inner_s) @ B^T + bias + y

Dimensions: M rows, N features, R the rank of all adapters together; partial [M, N], inner [M, R], S and L splits of
them. Dtypes: sums and B in fp32; bias and y in bf16, fp16 or fp32. Everything is added in fp32, in one order, and
rounded once. A program makes a tile of 16 x 64 of y.

Memory traffic: the sums, 4 * S * M * N bytes, mostly from the L2 cache, and M * N values out; with adapters B once, and
their sums, 4 * L * M * R bytes, for every 64 columns of y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, await_previous, cdiv, starts
from fam_engine.kernels.nf4_dequantize import LoraFactors

# Ranks multiplied at a time.
_BLOCK_R: Final = 16
# A tile of y.
_FINISH_BLOCK: Final = (16, 64)
# Sources, columns, splits of theirs and of an adapter's of Llama-3.1 8B: q, k, v; down.
_SHIPPED: Final = (((4096, 1024, 1024), 4096, 8, 8), ((4096,), 14336, 16, 32))
_RANK: Final = 16


@triton.jit
def _add_splits(partial, M, mask, STRIDE: tl.constexpr, SPLITS: tl.constexpr):
    total = tl.load(partial, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partial + tl.cast(split * STRIDE, tl.int64) * M, mask=mask, other=0.0)
    return total


@triton.jit(do_not_specialize=["M"])
def _finish(
    partial,
    lora_partial,
    lora_B,
    scaling,
    bias,
    out,
    M,
    out_stride,
    ROWS: tl.constexpr,
    STARTS: tl.constexpr,
    TILES: tl.constexpr,
    RANKS: tl.constexpr,
    RANK_STARTS: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    MOST_RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    LORA_SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    await_previous()
    # ---- which source ----
    tile = tl.program_id(1)
    source_B, factor, rank, rank_begin = lora_B[0], scaling[0], RANKS[0], 0
    first_tile, begin, num_rows = 0, 0, ROWS[0]
    for source in tl.static_range(1, len(ROWS)):
        if tile >= TILES[source]:
            source_B, factor = lora_B[source], scaling[source]
            rank, rank_begin = RANKS[source], RANK_STARTS[source]
            first_tile, begin, num_rows = TILES[source], STARTS[source], ROWS[source]
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    row = (tile - first_tile) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    inside = (m < M) & (row < num_rows)
    n = begin + row
    # ---- the sums ----
    total = _add_splits(partial + m.to(tl.int64) * N + n, M, inside, N, SPLITS)
    if MOST_RANK > 0:
        update = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for first in range(0, MOST_RANK, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            of_x = (m < M) & (r < rank)[None, :]
            inner = lora_partial + m * R + rank_begin + r[None, :]
            inner = _add_splits(inner, M, of_x, R, LORA_SPLITS)
            of_B = (r < rank)[:, None] & (row < num_rows)
            b = tl.load(source_B + row.to(tl.int64) * rank + r[:, None], mask=of_B, other=0.0)
            update = tl.dot(inner, b, update, input_precision="ieee")
        total += factor * update
    if HAS_BIAS:
        total += tl.load(bias + n, mask=row < num_rows, other=0.0).to(tl.float32)
    out += m.to(tl.int64) * out_stride + n
    if ADDS:
        total += tl.load(out, mask=inside, other=0.0).to(tl.float32)
    tl.store(out, total.to(out.dtype.element_ty), mask=inside)


def add_sums(
    partial: torch.Tensor,
    inner: torch.Tensor,
    features: tuple[int, ...],
    *,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    loras: Sequence[LoraFactors | None],
    adds: bool,
) -> None:
    """Write the sum of all splits, adapters and bias, rounded once.

    Args:
        partial: fp32[S, M, N], sums over splits of K, contiguous.
        inner: fp32[L, M, R], of x @ A^T of the adapters side by side, over splits of their own, contiguous.
        features: Rows of each source, N together.
        out: [M, N] of x's dtype, rows contiguous, any row stride: where to write.
        bias: [N] of x's dtype.
        loras: The adapter of each source, or nothing for all; both factors contiguous float32.
        adds: Add to what is in `out`.
    """
    num_splits, num_rows, num_features = partial.shape
    if not any(loras):  # then nothing depends on the source
        features, loras = (num_features,), (None,)
    ranks = tuple(lora.lora_A.shape[0] if lora else 0 for lora in loras)
    launch = _finish_launch(
        features, ranks, num_splits, len(inner), has_bias=bias is not None, adds=adds
    )
    num_tiles = launch.constants["TILES"][-1] + cdiv(features[-1], _FINISH_BLOCK[1])
    _finish[cdiv(num_rows, _FINISH_BLOCK[0]), num_tiles](
        partial,
        inner,
        tuple(lora.lora_B if lora else partial for lora in loras),
        tuple(lora.scaling if lora else 0.0 for lora in loras),
        partial if bias is None else bias,
        out,
        num_rows,
        out.stride(0),
        **launch.keywords,
    )


@cache
def _finish_launch(
    features: tuple[int, ...],
    ranks: tuple[int, ...],
    num_splits: int,
    num_lora_splits: int,
    *,
    has_bias: bool,
    adds: bool,
) -> Launch:
    constants = {
        "ROWS": features,
        "STARTS": starts(features),
        "TILES": starts([cdiv(rows, _FINISH_BLOCK[1]) for rows in features]),
        "RANKS": ranks,
        "RANK_STARTS": starts(ranks),
        "N": sum(features),
        "R": sum(ranks),
        "MOST_RANK": max(ranks),
        "SPLITS": num_splits,
        "LORA_SPLITS": num_lora_splits if any(ranks) else 0,
        "HAS_BIAS": has_bias,
        "ADDS": adds,
        "BLOCK_M": _FINISH_BLOCK[0],
        "BLOCK_N": _FINISH_BLOCK[1],
        "BLOCK_R": _BLOCK_R,
    }
    return Launch(constants, num_stages=1, is_early=True)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    value, fp32 = POINTER[torch.bfloat16], POINTER[torch.float32]
    for features, num_columns, num_splits, num_lora_splits in _SHIPPED:
        for rows, rank in (((sum(features),), 0), (features, _RANK)):
            yield Variant(
                name=f"nf4_linear bf16 {sum(features)}x{num_columns} finish rank {rank}",
                kernel=_finish,
                arguments={
                    "partial": fp32,
                    "lora_partial": fp32,
                    "lora_B": (fp32,) * len(rows),
                    "scaling": ("fp32",) * len(rows),
                    "bias": value,
                    "out": value,
                    "M": "i32",
                    "out_stride": "i32",
                },
                launch=_finish_launch(
                    rows,
                    (rank,) * len(rows),
                    num_splits,
                    num_lora_splits,
                    has_bias=False,
                    adds=True,
                ),
                divisible=frozenset({"out_stride"}),
            )
