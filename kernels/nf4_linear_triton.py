# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The product of few rows with NF4 matrices, unpacked in registers, as Triton kernels.

Equation, dimensions and dtypes as in `nf4_linear.py`, its reference; bf16, fp16 and fp32. All sources of a merged
matrix are multiplied in one launch.

1. `_nf4_partial`, one warp a program: sums over `COLUMNS` of the K columns (a split), for 32 rows of W and 8 to 64 rows
   of x. Of a block of 64 columns, which share a scale, the codes are multiplied with x; the sum is multiplied by the
   scale. So a weight is its code, rounded to the dtype of x, times its scale in fp32: of 16-bit dtypes nearer to the
   true one than in the dense matrix, which rounds the product.
2. `_lora_partial`, with an adapter: x @ A^T over as many splits.
3. `_finish`: adds the splits in order, then scaling * (x @ A^T) @ B^T, the bias and what is in `out` if asked to, and
   rounds once.

Splits depend on N and K alone, and an element's products are summed by the same instructions in the same order
whatever the tile of x, so that a row's bits depend on that row alone, and not on M either.

Memory traffic: W once, 0.516 byte a weight (half a byte, and 1 + 4 / 256 bytes a block of 64); x and y, M * (K + N)
values; sums of S splits, written and read, mostly in the L2 cache. One row of M costs at least

    0.516 * N * K / M + size(dtype) * (K + N) + 8 * S * N bytes.

Why so:
- A thread has two words, 16 weights, of a block of a row, and four threads the block: so the four matrix instructions
  of a block read them where they lie, W being the left operand. No weight changes places between threads; columns of
  x are numbered to fit, a thread reading 32 neighbouring bytes of each of its rows.
- The table of 16 values lies in the lanes of a warp and a shuffle looks up. A look-up costs a shift, a shuffle and half
  an instruction to pair two values; scaling the sum instead of each weight saves a multiplication and half a
  conversion: 3.5 instructions a weight with 8 rows, 4.2 with 16, 8 with 64, of which a matrix instruction is one.
- One warp a program: with more, x goes through shared memory.

Measured on an H100 (3.03 TB/s copied), 14336 x 4096, cold caches, whole call: 28 us with 1 row, 30 with 8, 32 with 16,
60 with 64; the kernel before this one, which scaled and rounded every weight (5.3 instructions each) and had 64 rows of
W in two warps, took 44, 45, 45, 92. Reading W alone takes 10 us at the rate of a copy. The kernel is not bound by
memory there: look-ups and unaligned loads keep the path to the L1 cache 77 % busy (Nsight Compute). Without the
look-ups it takes 22 us, without the scales as well 20. Loading ahead in registers (26) or through shared memory (26 to
36) does not help, nor does twice the work a program. A card with a third of the memory's rate is bound by memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import INTERPRETED, POINTER, Launch, Variant
from fam_engine.kernels.nf4_dequantize import NF4_CODE, LoraFactors
from fam_engine.kernels.nf4_linear import check_shape, num_features_of

if TYPE_CHECKING:
    from fam_engine.kernels.nf4_linear import NF4Tensors

# Columns that share a scale, and that a warp multiplies with one accumulator.
_BLOCK: Final = 64
# Rows of W in a program, which is one warp.
_BLOCK_N: Final = 32
# Rows of x in a program.
_BLOCK_M: Final = (8, 16, 32, 64)
# Eight programs for each of an H100's 132 SMs.
_MIN_PROGRAMS: Final = 1024
# A split is long enough to be worth its sums, and short enough that its first loads are not all it waits for.
_MIN_COLUMNS: Final = 256
_MAX_COLUMNS: Final = 1024
# The side of a tile of x @ A^T, and columns of its steps.
_LORA_BLOCK: Final = 16
_LORA_STEP: Final = 128
# A tile of y.
_FINISH_BLOCK: Final = (16, 64)
# The table is multiplied by this before it is rounded to 16 bits, and scales are divided by it: of the factors between
# 1 and 2 those with which the 16 rounded values are nearest to the true ones, in the mean of squares (0.06 % and
# 0.006 % of the table's size; 0.11 % and 0.016 % as it is).
_CODE_FACTOR: Final = {torch.bfloat16: 1.43701171875, torch.float16: 1.6776885986328125}
# In which order Triton gives the dimensions of a tile to threads, and a thread's values to an operand. With the other
# order the products are the same, and every weight is moved between threads.
_VERSION: Final = tuple(map(int, triton.__version__.split(".")[:2]))
_ORDER: Final = {"SINCE_3_7": _VERSION >= (3, 7), "SINCE_3_8": _VERSION >= (3, 8)}

# Rows of the sources and columns: Llama-3.2 1B (q and o; gate, up), 3B (down), Llama-3.1 8B (q, k, v; gate, up; down).
_SHIPPED: Final = (
    ((2048,), 2048),
    ((8192, 8192), 2048),
    ((3072,), 8192),
    ((4096, 1024, 1024), 4096),
    ((14336, 14336), 4096),
    ((4096,), 14336),
)
# Of these with an adapter, of this rank.
_SHIPPED_LORA: Final = (((4096, 1024, 1024), 4096), ((4096,), 14336))
_RANK: Final = 16

# Lane i of a warp holds value i & 15 of the table ...
_TABLE = tl.constexpr("""{
    .reg .b32 lane;
    .reg .b64 address;
    mov.u32 lane, %laneid;
    and.b32 lane, lane, 15;
    mad.wide.u32 address, lane, 4, $1;
    ld.global.nc.b32 $0, [address];
}""")
# ... and a shuffle looks up: of the lane asked for it regards five bits.
_LOOK_UP = tl.constexpr("shfl.sync.idx.b32 $0, $2, $1, 31, 0xffffffff;")
_LOOK_UP_16_BITS = tl.constexpr("""{
    .reg .b32 value;
    .reg .b16 zero;
    shfl.sync.idx.b32 value, $2, $1, 31, 0xffffffff;
    mov.b32 {$0, zero}, value;
}""")


@triton.jit
def _lane_value(codes, INTERPRET: tl.constexpr):
    """Give each thread its value of the table."""
    if INTERPRET:
        return 0
    else:
        return tl.inline_asm_elementwise(
            _TABLE, "=r,l", [codes], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def _look_up(index, lane_value, codes, dtype: tl.constexpr, INTERPRET: tl.constexpr):
    """Give values of the table; of an index four bits count."""
    if INTERPRET:
        bits = tl.load(codes + (index & 15))
        if dtype.primitive_bitwidth == 16:
            bits = bits.to(tl.int16)
    elif dtype.primitive_bitwidth == 16:
        bits = tl.inline_asm_elementwise(
            _LOOK_UP_16_BITS, "=h,r,r", [index, lane_value], dtype=tl.int16, is_pure=True, pack=1
        )
    else:
        bits = tl.inline_asm_elementwise(
            _LOOK_UP, "=r,r,r", [index, lane_value], dtype=tl.int32, is_pure=True, pack=1
        )
    return bits.to(dtype, bitcast=True)


@triton.jit
def _operand(x, SINCE_3_8: tl.constexpr):
    """Give [rows, 4, 2, 2] as [rows, 16] in an order of columns that leaves every value with its thread."""
    if SINCE_3_8:
        x = tl.permute(x, (0, 2, 1, 3))
    return tl.reshape(x, (x.shape[0], 16))


@triton.jit
def _words(words, SINCE_3_7: tl.constexpr):
    """Give the words of 64 columns as [N, 4, 2]."""
    if SINCE_3_7:
        return words
    else:
        return tl.permute(words, (2, 0, 1))


@triton.jit
def _pairs(x, SINCE_3_7: tl.constexpr):
    """Give 64 columns of x two by two, those of a byte of each word: four of [M, 4, 2, 2]."""
    x = tl.permute(x, (1, 2, 0, 3) if SINCE_3_7 else (1, 0, 2, 3))
    x = tl.permute(tl.reshape(x, (x.shape[0], 4, 2, 2, 2, 2)), (0, 1, 2, 5, 3, 4))
    even, odd = tl.split(x)
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _add_product(
    total,
    words,
    x,
    lane_value,
    codes,
    BYTE: tl.constexpr,
    SINCE_3_8: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Add the products of the two weights in a byte of every word [N, 4, 2] with x [M, 4, 2, 2]."""
    first = _look_up(words >> (8 * BYTE + 4), lane_value, codes, x.dtype, INTERPRET)
    second = _look_up(words >> (8 * BYTE), lane_value, codes, x.dtype, INTERPRET)
    left = _operand(tl.join(first, second), SINCE_3_8)
    right = tl.trans(_operand(x, SINCE_3_8))
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit(do_not_specialize=["M"])
def _nf4_partial(
    x,
    packed,
    absmax,
    absmax2,
    offset,
    code2,
    codes,
    partial,
    M,
    x_stride,
    ROWS: tl.constexpr,
    STARTS: tl.constexpr,
    TILES: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    INVERSE_FACTOR: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLL: tl.constexpr,
    SINCE_3_7: tl.constexpr,
    SINCE_3_8: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    # ---- which source, and where its rows begin in y ----
    tile = tl.program_id(1)
    source_packed, source_absmax, source_absmax2 = packed[0], absmax[0], absmax2[0]
    source_offset, source_code2 = offset[0], code2[0]
    first_tile, begin, num_rows = 0, 0, ROWS[0]
    for source in tl.static_range(1, len(ROWS)):
        if tile >= TILES[source]:
            source_packed, source_absmax = packed[source], absmax[source]
            source_absmax2, source_offset = absmax2[source], offset[source]
            source_code2 = code2[source]
            first_tile, begin, num_rows = TILES[source], STARTS[source], ROWS[source]
    n = (tile - first_tile) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows after the last one are taken to be the last one; what they give is not stored.
    row = tl.minimum(n, num_rows - 1).to(tl.int64)

    # ---- of 64 columns a thread has 16, which are two words: four threads to a row ----
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    # 64 rows of it are not 2^31 values; pointers to each would not fit into the registers.
    place = m[None, :, None, None] * x_stride + tl.arange(0, 8)[None, None, None, :]
    thread, half = tl.arange(0, 4), tl.arange(0, 2)
    if SINCE_3_7:
        place += 16 * thread[None, None, :, None] + 8 * half[:, None, None, None]
        source_packed += 2 * thread[None, :, None] + half[None, None, :]
        source_packed += row[:, None, None] * (K // 8)
    else:
        place += 16 * thread[:, None, None, None] + 8 * half[None, None, :, None]
        source_packed += 2 * thread[:, None, None] + half[None, :, None]
        source_packed += row[None, None, :] * (K // 8)
    has_row = (m < M)[None, :, None, None]
    mean = tl.load(source_offset)
    lane_value = _lane_value(codes, INTERPRET)

    split = tl.program_id(2)
    start = split * COLUMNS
    stop = tl.minimum(start + COLUMNS, K)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for unrolled in range(start, stop, 64 * UNROLL):
        for step in tl.static_range(UNROLL):
            first = unrolled + 64 * step
            words = _words(tl.load(source_packed + first // 8), SINCE_3_7)
            block = row * (K // 64) + first // 64
            scale = tl.load(source_code2 + tl.load(source_absmax + block).to(tl.int32))
            scale = scale * tl.load(source_absmax2 + (block >> 8)) + mean
            x_tile = tl.load(x + first + place, mask=has_row, other=0.0)
            x0, x1, x2, x3 = _pairs(x_tile, SINCE_3_7)
            part = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
            part = _add_product(part, words, x0, lane_value, codes, 0, SINCE_3_8, INTERPRET)
            part = _add_product(part, words, x1, lane_value, codes, 1, SINCE_3_8, INTERPRET)
            part = _add_product(part, words, x2, lane_value, codes, 2, SINCE_3_8, INTERPRET)
            part = _add_product(part, words, x3, lane_value, codes, 3, SINCE_3_8, INTERPRET)
            scale = tl.broadcast_to(scale[:, None], (BLOCK_N, BLOCK_M))
            total = tl.fma(part, scale, total)

    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    partial += (split * M + m).to(tl.int64) * N + begin
    mask = (m < M) & (n < num_rows)[:, None]
    tl.store(partial + n[:, None], total * INVERSE_FACTOR, mask=mask)


@triton.jit(do_not_specialize=["M"])
def _lora_partial(
    x,
    lora_A,
    partial,
    M,
    x_stride,
    K: tl.constexpr,
    R: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STEP: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    split = tl.program_id(2)
    start = split * COLUMNS
    stop = tl.minimum(start + COLUMNS, K)
    k = tl.arange(0, STEP)
    x += m.to(tl.int64) * x_stride + k[None, :]
    lora_A += r * K + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for first in range(start, stop, STEP):
        inside = (K % STEP == 0) | (first + k < stop)
        x_tile = tl.load(x + first, mask=(m < M) & inside[None, :], other=0.0).to(tl.float32)
        a = tl.load(lora_A + first, mask=(r < R) & inside[:, None], other=0.0)
        total = tl.dot(x_tile, a, total, input_precision="ieee")
    partial += (split * M + m).to(tl.int64) * R
    tl.store(partial + r, total, mask=(m < M) & (r < R))


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
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    inside = (m < M) & (n < N)
    total = _add_splits(partial + m.to(tl.int64) * STRIDE + n, M, inside, STRIDE, SPLITS)
    if R > 0:
        update = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for first in range(0, R, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            of_x = (m < M) & (r < R)[None, :]
            inner = _add_splits(lora_partial + m * R + r[None, :], M, of_x, R, SPLITS)
            of_B = (r < R)[:, None] & (n < N)
            b = tl.load(lora_B + n.to(tl.int64) * R + r[:, None], mask=of_B, other=0.0)
            update = tl.dot(inner, b, update, input_precision="ieee")
        total += scaling * update
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    out += m.to(tl.int64) * out_stride + n
    if ADDS:
        total += tl.load(out, mask=inside, other=0.0).to(tl.float32)
    tl.store(out, total.to(out.dtype.element_ty), mask=inside)


def nf4_linear(
    x: torch.Tensor,
    sources: Sequence[NF4Tensors],
    *,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    loras: Sequence[LoraFactors | None] = (),
    adds: bool = False,
) -> None:
    """Write x @ W^T + scaling * (x @ A^T) @ B^T + bias, W [N, K] the sources' matrices one below the other.

    Args:
        x: [M, K] in bf16, fp16 or fp32, rows contiguous, any row stride; M at most `MAX_ROWS`, K a multiple of 64.
        sources: At least one.
        out: [M, N] of x's dtype, rows contiguous, any row stride: where to write.
        bias: [N] of x's dtype.
        loras: The adapter of each source, or nothing for all; both factors contiguous float32.
        adds: Add to what is in `out`, before the sum is rounded.

    Raises:
        ValueError: M or K is not supported.
    """
    check_shape(x)
    (num_rows, num_columns), num_features = x.shape, out.shape[1]
    features = tuple(num_features_of(source, num_columns) for source in sources)
    assert out.shape == (num_rows, sum(features))
    assert (out.dtype, x.stride(1), out.stride(1)) == (x.dtype, 1, 1)
    num_splits = triton.cdiv(num_columns, _columns(features, num_columns))
    shape = num_splits, num_rows, num_features
    partial = torch.empty(shape, dtype=torch.float32, device=x.device)
    block_m = _block_m(num_rows, x.dtype)
    num_tiles = sum(triton.cdiv(rows, _BLOCK_N) for rows in features)
    _nf4_partial[triton.cdiv(num_rows, block_m), num_tiles, num_splits](
        x,
        tuple(source.packed.view(-1).view(torch.int32) for source in sources),
        tuple(source.absmax for source in sources),
        tuple(source.absmax2 for source in sources),
        tuple(source.offset for source in sources),
        tuple(source.code2 for source in sources),
        _table(x.dtype, x.device),
        partial,
        num_rows,
        x.stride(0),
        **_partial_launch(features, num_columns, x.dtype, block_m).keywords,
    )
    if not any(loras):
        _finish_source(partial, x, out, bias, None, adds=adds)
        return
    for lora, place in zip(loras, _places(features), strict=True):
        source_bias = None if bias is None else bias[place]
        _finish_source(partial[..., place], x, out[:, place], source_bias, lora, adds=adds)


def _finish_source(
    partial: torch.Tensor,
    x: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    lora: LoraFactors | None,
    *,
    adds: bool,
) -> None:
    """Add splits, the adapter's product and the bias, and round."""
    num_splits, num_rows, num_features = partial.shape
    rank = 0 if lora is None else lora.lora_A.shape[0]
    lora_partial = lora_B = partial  # not looked at without an adapter
    if lora is not None:
        assert lora.lora_A.is_contiguous()
        assert lora.lora_B.is_contiguous()
        lora_partial, lora_B = _lora_product(x, lora.lora_A, num_splits), lora.lora_B
    launch = _finish_launch(
        num_features, partial.stride(1), num_splits, rank, has_bias=bias is not None, adds=adds
    )
    tiles = (triton.cdiv(num_rows, _FINISH_BLOCK[0]), triton.cdiv(num_features, _FINISH_BLOCK[1]))
    _finish[tiles](
        partial,
        lora_partial,
        lora_B,
        0.0 if lora is None else lora.scaling,
        partial if bias is None else bias,
        out,
        num_rows,
        out.stride(0),
        **launch.keywords,
    )


def _lora_product(x: torch.Tensor, lora_A: torch.Tensor, num_splits: int) -> torch.Tensor:
    """Return x @ A^T as sums over as many splits of the columns, [splits, M, R]."""
    (num_rows, num_columns), rank = x.shape, lora_A.shape[0]
    partial = torch.empty((num_splits, num_rows, rank), dtype=torch.float32, device=x.device)
    tiles = (triton.cdiv(num_rows, _LORA_BLOCK), triton.cdiv(rank, _LORA_BLOCK))
    _lora_partial[*tiles, num_splits](
        x,
        lora_A,
        partial,
        num_rows,
        x.stride(0),
        **_lora_launch(num_columns, rank, num_splits).keywords,
    )
    return partial


def _columns(features: Sequence[int], num_columns: int) -> int:
    """Give the columns of a split: whole blocks, two if there are no odd ones, whatever the number of rows."""
    tiles = sum(triton.cdiv(rows, _BLOCK_N) for rows in features)
    num_splits = triton.next_power_of_2(
        max(triton.cdiv(_MIN_PROGRAMS, tiles), triton.cdiv(num_columns, _MAX_COLUMNS))
    )
    grain = _BLOCK * _unroll(num_columns, _BLOCK_M[0])
    columns: int = triton.cdiv(num_columns, num_splits * grain) * grain
    return max(columns, _MIN_COLUMNS)


def _unroll(num_columns: int, block_m: int) -> int:
    """Give the blocks of a step: two, of which the second's loads come before the first's products."""
    return 2 if num_columns % (2 * _BLOCK) == 0 and block_m <= 16 else 1


def _block_m(num_rows: int, dtype: torch.dtype) -> int:
    """Give the rows of x in a program; more than 16 in fp32 do not fit into the registers."""
    fitting = next(size for size in _BLOCK_M if size >= num_rows)
    return min(fitting, 16) if dtype == torch.float32 else fitting


def _places(features: Sequence[int]) -> Iterator[slice]:
    start = 0
    for rows in features:
        yield slice(start, start + rows)
        start += rows


@lru_cache(maxsize=8)
def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Give the bits of the 16 values, int32[16]."""
    values = torch.tensor(NF4_CODE, dtype=torch.float64) * _CODE_FACTOR.get(dtype, 1.0)
    bits = values.to(dtype).view(torch.int32 if dtype.itemsize == 4 else torch.int16)
    with torch.inference_mode(False):
        return bits.to(torch.int32).to(device)


def _partial_launch(
    features: Sequence[int], num_columns: int, dtype: torch.dtype, block_m: int
) -> Launch:
    tiles = [triton.cdiv(rows, _BLOCK_N) for rows in features]
    constants = {
        "ROWS": tuple(features),
        "STARTS": tuple(place.start for place in _places(features)),
        "TILES": tuple(place.start for place in _places(tiles)),
        "N": sum(features),
        "K": num_columns,
        "INVERSE_FACTOR": 1 / _CODE_FACTOR.get(dtype, 1.0),
        "COLUMNS": _columns(features, num_columns),
        "BLOCK_M": block_m,
        "BLOCK_N": _BLOCK_N,
        "UNROLL": _unroll(num_columns, block_m),
        "INTERPRET": INTERPRETED,
        **_ORDER,
    }
    # Without fusion a scale has the bits of `nf4_scales`.
    return Launch(constants, num_warps=1, num_stages=1, enable_fp_fusion=False)


def _lora_launch(num_columns: int, rank: int, num_splits: int) -> Launch:
    constants = {
        "K": num_columns,
        "R": rank,
        "COLUMNS": triton.cdiv(num_columns, num_splits * _LORA_STEP) * _LORA_STEP,
        "BLOCK_M": _LORA_BLOCK,
        "BLOCK_R": _LORA_BLOCK,
        "STEP": _LORA_STEP,
    }
    return Launch(constants, num_stages=1)


def _finish_launch(
    num_features: int, stride: int, num_splits: int, rank: int, *, has_bias: bool, adds: bool
) -> Launch:
    constants = {
        "N": num_features,
        "STRIDE": stride,
        "R": rank,
        "SPLITS": num_splits,
        "HAS_BIAS": has_bias,
        "ADDS": adds,
        "BLOCK_M": _FINISH_BLOCK[0],
        "BLOCK_N": _FINISH_BLOCK[1],
        "BLOCK_R": _LORA_BLOCK,
    }
    return Launch(constants, num_stages=1)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    value, fp32 = POINTER[torch.bfloat16], POINTER[torch.float32]
    rows = {"x": value, "partial": fp32, "M": "i32", "x_stride": "i32"}
    for features, num_columns in _SHIPPED:
        count = len(features)
        sources: dict[str, str | tuple[str, ...]] = {
            "packed": ("*i32",) * count,
            "absmax": ("*u8",) * count,
            "codes": "*i32",
        }
        sources |= dict.fromkeys(("absmax2", "offset", "code2"), (fp32,) * count)
        for block_m in _BLOCK_M:
            yield Variant(
                name=f"nf4_linear bf16 {sum(features)}x{num_columns} {block_m} rows",
                kernel=_nf4_partial,
                arguments=rows | sources,
                launch=_partial_launch(features, num_columns, torch.bfloat16, block_m),
                divisible=frozenset({"x_stride"}),
                # mma.sync everywhere, also where the gate looks for wgmma or tcgen05.
                uses_matrix_units=capability not in (90, 100),
                values=_BLOCK_N * _BLOCK * _unroll(num_columns, block_m),
            )
    for features, num_columns in _SHIPPED_LORA:
        num_features = features[0]
        num_splits = triton.cdiv(num_columns, _columns(features, num_columns))
        yield Variant(
            name=f"nf4_linear bf16 {num_features}x{num_columns} lora rank {_RANK}",
            kernel=_lora_partial,
            arguments=rows | {"lora_A": fp32},
            launch=_lora_launch(num_columns, _RANK, num_splits),
            divisible=frozenset({"x_stride"}),
        )
        for rank in (0, _RANK):
            yield Variant(
                name=f"nf4_linear bf16 {num_features}x{num_columns} finish rank {rank}",
                kernel=_finish,
                arguments=dict.fromkeys(("partial", "lora_partial", "lora_B"), fp32)
                | {"scaling": "fp32", "bias": value, "out": value, "M": "i32", "out_stride": "i32"},
                launch=_finish_launch(
                    num_features, sum(features), num_splits, rank, has_bias=False, adds=True
                ),
                divisible=frozenset({"out_stride"}),
            )
