# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What becomes of the sums of `nf4_linear_triton.py`, as Triton kernels: of all sources of a merged matrix at once.

Equation, for each source, s the splits of K:

    y = sum_s partial_s + scaling * (sum_s x_s @ A_s^T) @ B^T + bias + y

Dimensions as there. Dtypes: sums, A and B in fp32; x, bias and y in bf16, fp16 or fp32. Everything is added in fp32, in
one order, and rounded once.

1. `_lora_partial`, where there is an adapter: x @ A^T over at most 16 splits. Values of 16 bits are whole numbers of
   TF32, and a factor in fp32 is two: so matrix instructions lose 2^-22 of a product, which the sums lose as well.
2. `_finish`: the equation above, a tile of 16 x 64 of y a program.

Memory traffic: the sums of S splits, 4 * S * M * N bytes, mostly from the L2 cache, and M * N values out; with adapters
A and B once, and x again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, await_previous
from fam_engine.kernels.nf4_dequantize import LoraFactors

# The side of a tile of x @ A^T, and columns of its steps.
_LORA_BLOCK: Final = 16
_LORA_STEP: Final = 128
_MIN_LORA_COLUMNS: Final = 256
_MOST_LORA_SPLITS: Final = 16
# A tile of y.
_FINISH_BLOCK: Final = (16, 64)
# Sources, columns and splits of Llama-3.1 8B: q, k, v; down.
_SHIPPED: Final = (((4096, 1024, 1024), 4096, 8), ((4096,), 14336, 16))
_RANK: Final = 16


@triton.jit(do_not_specialize=["M"])
def _lora_partial(
    x,
    lora_A,
    partial,
    M,
    x_stride,
    RANKS: tl.constexpr,
    STARTS: tl.constexpr,
    TILES: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    await_previous()
    # ---- which adapter, and where its sums begin ----
    tile = tl.program_id(1)
    source_A, first_tile, begin, rank = lora_A[0], 0, 0, RANKS[0]
    for source in tl.static_range(1, len(RANKS)):
        if tile >= TILES[source]:
            source_A, first_tile = lora_A[source], TILES[source]
            begin, rank = STARTS[source], RANKS[source]
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    r = (tile - first_tile) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    split = tl.program_id(2)
    start = split * COLUMNS
    stop = tl.minimum(start + COLUMNS, K)
    k = tl.arange(0, STEP)
    x += m.to(tl.int64) * x_stride + k[None, :]
    source_A += r * K + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for first in range(start, stop, STEP):
        inside = (K % STEP == 0) | (first + k < stop)
        x_tile = tl.load(x + first, mask=(m < M) & inside[None, :], other=0.0).to(tl.float32)
        a = tl.load(source_A + first, mask=(r < rank) & inside[:, None], other=0.0)
        total = tl.dot(x_tile, a, total, input_precision=PRECISION)
    partial += (split * M + m).to(tl.int64) * R + begin
    tl.store(partial + r, total, mask=(m < M) & (r < rank))


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
    x: torch.Tensor,
    features: Sequence[int],
    *,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    loras: Sequence[LoraFactors | None],
    adds: bool,
) -> None:
    """Write the sum of all splits, adapters and bias, rounded once.

    Args:
        partial: fp32[S, M, N], sums over splits of K, contiguous.
        x: [M, K], rows contiguous, any row stride.
        features: Rows of each source, N together.
        out: [M, N] of x's dtype, rows contiguous, any row stride: where to write.
        bias: [N] of x's dtype.
        loras: The adapter of each source, or nothing for all; both factors contiguous float32.
        adds: Add to what is in `out`.
    """
    num_splits, num_rows, num_features = partial.shape
    adapters = [lora for lora in loras if lora is not None]
    if not adapters:  # then nothing depends on the source
        features, loras = (num_features,), (None,)
    ranks = [lora.lora_A.shape[0] if lora else 0 for lora in loras]
    inner = _lora_product(x, adapters) if adapters else partial
    launch = _finish_launch(
        features, ranks, num_splits, len(inner), has_bias=bias is not None, adds=adds
    )
    num_tiles = sum(triton.cdiv(rows, _FINISH_BLOCK[1]) for rows in features)
    _finish[triton.cdiv(num_rows, _FINISH_BLOCK[0]), num_tiles](
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


def _lora_product(x: torch.Tensor, adapters: Sequence[LoraFactors]) -> torch.Tensor:
    """Return x @ A^T of all adapters side by side, as sums over splits of the columns, [L, M, R]."""
    for adapter in adapters:
        assert adapter.lora_A.is_contiguous()
        assert adapter.lora_B.is_contiguous()
    (num_rows, num_columns) = x.shape
    ranks = [adapter.lora_A.shape[0] for adapter in adapters]
    num_splits = triton.cdiv(num_columns, _lora_columns(num_columns))
    shape = (num_splits, num_rows, sum(ranks))
    partial = torch.empty(shape, dtype=torch.float32, device=x.device)
    num_tiles = sum(triton.cdiv(rank, _LORA_BLOCK) for rank in ranks)
    _lora_partial[triton.cdiv(num_rows, _LORA_BLOCK), num_tiles, num_splits](
        x,
        tuple(adapter.lora_A for adapter in adapters),
        partial,
        num_rows,
        x.stride(0),
        **_lora_launch(ranks, num_columns, x.dtype).keywords,
    )
    return partial


def _lora_columns(num_columns: int) -> int:
    """Give the columns of a split, whatever the number of rows."""
    columns: int = triton.cdiv(num_columns, _MOST_LORA_SPLITS * _LORA_STEP) * _LORA_STEP
    return max(columns, _MIN_LORA_COLUMNS)


def _precision(dtype: torch.dtype) -> str:
    """Give how factors in fp32 are multiplied: by matrix instructions, in three parts, if the result has 16 bits."""
    return "ieee" if dtype == torch.float32 else "tf32x3"


def starts(sizes: Sequence[int]) -> tuple[int, ...]:
    """Give where each begins when they lie one behind the other."""
    return tuple(accumulate(sizes[:-1], initial=0))


def _lora_launch(ranks: Sequence[int], num_columns: int, dtype: torch.dtype) -> Launch:
    constants = {
        "RANKS": tuple(ranks),
        "STARTS": starts(ranks),
        "TILES": starts([triton.cdiv(rank, _LORA_BLOCK) for rank in ranks]),
        "R": sum(ranks),
        "K": num_columns,
        "COLUMNS": _lora_columns(num_columns),
        "BLOCK_M": _LORA_BLOCK,
        "BLOCK_R": _LORA_BLOCK,
        "STEP": _LORA_STEP,
        "PRECISION": _precision(dtype),
    }
    return Launch(constants, num_warps=2, num_stages=3, is_early=True)


def _finish_launch(
    features: Sequence[int],
    ranks: Sequence[int],
    num_splits: int,
    num_lora_splits: int,
    *,
    has_bias: bool,
    adds: bool,
) -> Launch:
    constants = {
        "ROWS": tuple(features),
        "STARTS": starts(features),
        "TILES": starts([triton.cdiv(rows, _FINISH_BLOCK[1]) for rows in features]),
        "RANKS": tuple(ranks),
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
        "BLOCK_R": _LORA_BLOCK,
    }
    return Launch(constants, num_stages=1, is_early=True)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    value, fp32 = POINTER[torch.bfloat16], POINTER[torch.float32]
    for features, num_columns, num_splits in _SHIPPED:
        shape, ranks = f"bf16 {sum(features)}x{num_columns}", (_RANK,) * len(features)
        yield Variant(
            name=f"nf4_linear {shape} lora rank {_RANK}",
            kernel=_lora_partial,
            arguments={
                "x": value,
                "lora_A": (fp32,) * len(features),
                "partial": fp32,
                "M": "i32",
                "x_stride": "i32",
            },
            launch=_lora_launch(ranks, num_columns, torch.bfloat16),
            divisible=frozenset({"x_stride"}),
        )
        for rows, rank in (((sum(features),), 0), (features, _RANK)):
            yield Variant(
                name=f"nf4_linear {shape} finish rank {rank}",
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
                    triton.cdiv(num_columns, _lora_columns(num_columns)),
                    has_bias=False,
                    adds=True,
                ),
                divisible=frozenset({"out_stride"}),
            )
