# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The product of few rows with NF4 matrices, unpacked in registers, as Triton kernels.

Equation, dimensions and dtypes as in `nf4_linear.py`, its reference; bf16, fp16 and fp32. All sources of a merged
matrix are multiplied in one launch.

1. `_nf4_partial`, one warp a program: sums over `COLUMNS` of the K columns (a split), for 32 rows of W and 8 to 64 rows
   of x. Of a block of 64 columns, which share a scale, the codes are multiplied with x; the sum is multiplied by the
   scale. So a weight is its code, rounded to the dtype of x, times its scale in fp32: of 16-bit dtypes nearer to the
   true one than in the dense matrix, which rounds the product. Other programs of the same launch add up 16 rows of an
   adapter's A and 8 of x, over a split or half of one: a number of 16 bits is one of TF32, and one of fp32 is two but
   for 2^-22 of it, so these are products of matrix instructions, too.
2. What is in `nf4_linear_sums_triton.py`: splits are added in order, with them the adapters' products, the bias and
   what is in `out` if asked to, and rounded once.

Splits depend on N and K alone, and an element's products are summed by the same instructions in the same order
whatever the tile of x, so that a row's bits depend on that row alone, and not on M either.

Memory traffic: W once, 0.516 byte a weight (half a byte, and 1 + 4 / 256 bytes a block of 64); x and y, M * (K + N)
values; sums of S splits, written and read, mostly in the L2 cache. One row of M costs at least

    0.516 * N * K / M + size(dtype) * (K + N) + 8 * S * N bytes.

Why so:
- A thread has two words, 16 weights, of a block of a row, and four threads the block: so the four matrix instructions
  of a block read them where they lie, W being the left operand. No weight changes places between threads; columns of
  x are numbered to fit, a thread reading 32 neighbouring bytes of each of its rows.
- Permutations of bytes look up: the table of 16 values of 16 bits is eight words, of which two permutations and a
  selection give a byte of four values at a time. A value costs 2.6 instructions. Counted by hand, an SM's unit for them
  is busy for 87 cycles a block with 8 rows, and the path to the L1 cache for 71. Look-ups by shuffles cost 2.5, but
  pass through that path, too: 159 cycles, which the kernel before this one waited for.
- Scaling the sum instead of each weight saves a multiplication and half a conversion a weight.
- Scales are read four blocks at a time, since those of 32 rows lie in as many lines of memory, whatever their size.
- Weights are loaded a block ahead. Programs begin together, so that they would all wait and all compute together.
- One warp a program: with more, x goes through shared memory.
- A program asks for its first weights, at most 256 columns, before the kernel before it has ended.
- Adapters have no kernel of their own: with one, a product of 4096 x 4096 took an H100 28 us and, launched early, 69.
  Its programs may then go to the few SMs that have room while the kernel before it still runs.

Measured on an H100 (3.03 TB/s copied): the four products of a layer of Llama-3.1-8B in a CUDA graph, caches cold.
Reading the weights takes 37 us at the rate of a copy.

    rows, and rank of adapters                             1     8    16    1, 16
    shuffles, scales one by one, nothing ahead            96   105   118      107
    permutations, scales by four                          97   105   115      104
    and at least 2048 programs instead of 1024            92   102   117      102
    and at least 3072                                     91    98   113
    2048, and weights a block ahead                       93    97   103
    2048, two blocks ahead, two blocks a step             91    97   123      102
    1024, two blocks ahead, two blocks a step             91    96   119

This is the last but two with 1024 programs: in two other runs 91 to 92, 98 to 99 and 101. With 2048 it took 91, 98 and
115 there. Asking the L2 cache for the next 256 columns cost 5 us more with 1 row, 7 with 8, nothing with 16.

Tried beside it: programs whose eight warps share the columns of 16 rows, so that no second kernel adds sums, with two
steps of 256 columns ahead: 84 and 89 us, but with 16 rows, for which one program fits an SM's registers, 156, and 129
held to half of them. Without look-ups, with one scale and the same x for all, 68 and 70 remained; 4 warps took 99 and
115, 16 took 131 and 135; programs that go from tile to tile instead of beginning anew 96, 95 and 152. So what fills the
time beside reading is neither look-ups nor the beginning of programs alone; the GPU's counters were not asked yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import (
    INTERPRETED,
    POINTER,
    Launch,
    Variant,
    await_previous,
    cdiv,
    starts,
)
from fam_engine.kernels.nf4_dequantize import NF4_CODE, LoraFactors
from fam_engine.kernels.nf4_linear import check_shape
from fam_engine.kernels.nf4_linear_sums_triton import add_sums

if TYPE_CHECKING:
    from fam_engine.kernels.nf4_dequantize import NF4Weight

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
# Of a program that multiplies an adapter's A: rows of x and of A, columns of a step, and the most of all.
_FACTOR_M: Final = 8
_BLOCK_R: Final = 16
_FACTOR_STEP: Final = 64
_MAX_FACTOR_COLUMNS: Final = 512
# The table is multiplied by this before it is rounded to 16 bits, and scales are divided by it: of the factors between
# 1 and 2 those with which the 16 rounded values are nearest to the true ones, in the mean of squares (0.06 % and
# 0.006 % of the table's size; 0.11 % and 0.016 % as it is).
_CODE_FACTOR: Final = {torch.bfloat16: 1.43701171875, torch.float16: 1.6776885986328125}
# In which order Triton gives the dimensions of a tile to threads, and a thread's values to an operand. With the other
# order the products are the same, and every weight is moved between threads.
_VERSION: Final = tuple(map(int, triton.__version__.split(".")[:2]))
_ORDER: Final = {"SINCE_3_7": _VERSION >= (3, 7), "SINCE_3_8": _VERSION >= (3, 8)}

# Rows of the sources and columns: Llama-3.2 1B (q and o; gate, up), 3B (down), Llama-3.1 8B (q, k, v; gate, up; down).
_RANK: Final = 16
_SHIPPED: Final = (
    ((2048,), 2048),
    ((8192, 8192), 2048),
    ((3072,), 8192),
    ((4096, 1024, 1024), 4096),
    ((14336, 14336), 4096),
    ((4096,), 14336),
)

# The table's bytes. With a stride lanes take turns at two copies, lest the compiler see that all have the same: then it
# keeps them in uniform registers and moves them for every use.
_TABLE_BYTES = tl.constexpr("""{
    .reg .b32 lane;
    .reg .b64 address;
    mov.u32 lane, %laneid;
    and.b32 lane, lane, 1;
    mad.wide.u32 address, lane, $9, $8;
    ld.global.nc.v4.b32 {$0, $1, $2, $3}, [address + 64];
    ld.global.nc.v4.b32 {$4, $5, $6, $7}, [address + 80];
}""")

# Of half a word, four values of 16 bits: first a byte of all four, then the other, chosen out of eight by the low three
# bits of an index, for both values of its high bit, which takes one of the two. Of a byte, the high half comes first.
_LOOK_UP = tl.constexpr("""{
    .reg .b32 low_bits, shifted, is_high, below, above, first, second, pair;
    and.b32 low_bits, $4, 0x77777777;
    shr.u32 low_bits, low_bits, $5;
    shl.b32 shifted, $4, 4;
    prmt.b32 is_high, shifted, $4, $6;
    prmt.b32 below, $7, $8, low_bits;
    prmt.b32 above, $9, $10, low_bits;
    lop3.b32 first, is_high, above, below, 0xca;
    prmt.b32 below, $11, $12, low_bits;
    prmt.b32 above, $13, $14, low_bits;
    lop3.b32 second, is_high, above, below, 0xca;
    prmt.b32 pair, first, second, 0x4051;
    mov.b32 {$0, $1}, pair;
    prmt.b32 pair, first, second, 0x6273;
    mov.b32 {$2, $3}, pair;
}""")

# Bytes of a word shifted left by 4 bits and of the word itself in turn, of each half: copies of their signs.
_LOW_SIGNS = tl.constexpr(0xD9C8)
_HIGH_SIGNS = tl.constexpr(0xFBEA)

# What lies around an address, at most the 128 bytes of a line, from memory to the L2 cache.
_PREFETCH = tl.constexpr("prefetch.global.L2 [$1]; mov.u32 $0, 0;")


@triton.jit
def _prefetch(address, INTERPRET: tl.constexpr):
    if not INTERPRET:
        tl.inline_asm_elementwise(
            _PREFETCH, "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _program_again(IS_KEPT: tl.constexpr):
    """Give `tl.program_id` of 0, 1, 2, unless kept as if never asked: then they took no registers meanwhile."""
    if IS_KEPT:
        return tl.program_id(0), tl.program_id(1), tl.program_id(2)
    else:
        return tl.inline_asm_elementwise(
            "mov.u32 $0, %ctaid.x; mov.u32 $1, %ctaid.y; mov.u32 $2, %ctaid.z;",
            "=r,=r,=r,r",
            [0],
            dtype=(tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )


@triton.jit
def _table_bytes(codes, dtype: tl.constexpr, STRIDE: tl.constexpr, INTERPRET: tl.constexpr):
    """Give all first bytes of the table's values, then all second ones, in eight words; nothing if not looked up so."""
    if dtype.primitive_bitwidth == 16 and not INTERPRET:
        return tl.inline_asm_elementwise(
            _TABLE_BYTES,
            "=r,=r,=r,=r,=r,=r,=r,=r,l,r",
            [codes, STRIDE],
            dtype=(tl.int32,) * 8,
            is_pure=True,
            pack=1,
        )
    else:
        return ()


@triton.jit
def _look_up(words, table, codes, dtype: tl.constexpr, HALF: tl.constexpr, INTERPRET: tl.constexpr):
    """Give the bits of the four weights in half of every word, without their scales: four tensors."""
    if dtype.primitive_bitwidth == 16 and not INTERPRET:
        a0, a1, a2, a3, b0, b1, b2, b3 = table
        signs: tl.constexpr = _HIGH_SIGNS if HALF else _LOW_SIGNS
        return tl.inline_asm_elementwise(
            _LOOK_UP,
            "=h,=h,=h,=h,r,n,n,r,r,r,r,r,r,r,r",
            [words, 16 * HALF, signs, a0, a1, a2, a3, b0, b1, b2, b3],
            dtype=(tl.int16,) * 4,
            is_pure=True,
            pack=1,
        )
    else:
        half = words >> (16 * HALF)
        return (
            _value(half >> 4, codes, dtype),
            _value(half, codes, dtype),
            _value(half >> 12, codes, dtype),
            _value(half >> 8, codes, dtype),
        )


@triton.jit
def _value(index, codes, dtype: tl.constexpr):
    """Give the bits of values of the table; of an index four bits count."""
    bits = tl.load(codes + (index & 15))
    return bits.to(tl.int16) if dtype.primitive_bitwidth == 16 else bits


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
def _add_product(total, first, second, x, SINCE_3_8: tl.constexpr):
    """Add the products of two weights of every word, [N, 4, 2] each, with x [M, 4, 2, 2]."""
    left = tl.join(first, second).to(x.dtype, bitcast=True)
    left = _operand(left, SINCE_3_8)
    right = tl.trans(_operand(x, SINCE_3_8))
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _multiply_factors(
    x,
    lora_A,
    inner,
    M,
    x_stride,
    place,
    RANKS: tl.constexpr,
    RANK_STARTS: tl.constexpr,
    PLACES: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    FACTOR_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STEP: tl.constexpr,
):
    """Multiply rows of an adapter's A with x over a part of a split."""
    await_previous()
    # ---- which rows of x, which adapter, which of its rows, and which part of the split ----
    chunks: tl.constexpr = BLOCK_M // FACTOR_M
    m = tl.program_id(0) * BLOCK_M + place % chunks * FACTOR_M + tl.arange(0, FACTOR_M)
    place = place // chunks
    source_A, first_place, begin, rank = lora_A[0], 0, 0, RANKS[0]
    for source in tl.static_range(1, len(RANKS)):
        if place >= PLACES[source]:
            source_A, first_place = lora_A[source], PLACES[source]
            begin, rank = RANK_STARTS[source], RANKS[source]
    part = (place - first_place) % PARTS
    r = (place - first_place) // PARTS * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    split = tl.program_id(2)
    width: tl.constexpr = COLUMNS // PARTS
    start = split * COLUMNS + part * width
    stop = tl.minimum(start + width, K)

    k = tl.arange(0, STEP)[None, :]
    x += m[:, None].to(tl.int64) * x_stride + k
    source_A += r * K + k
    total = tl.zeros((BLOCK_R, FACTOR_M), dtype=tl.float32)
    for first in range(start, stop, STEP):
        x_tile = tl.trans(tl.load(x + first, mask=(m < M)[:, None], other=0.0))
        a = tl.load(source_A + first, mask=r < rank, other=0.0)
        if x_tile.dtype == tl.float32:
            total = tl.dot(a, x_tile, total, input_precision="ieee")
        else:  # a number of 16 bits is one of TF32, and one of fp32 is two, but for 2^-22 of it
            high = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            x_tile = x_tile.to(tl.float32)
            total = tl.dot(a - high, x_tile, total, input_precision="tf32")
            total = tl.dot(high, x_tile, total, input_precision="tf32")
    inner += ((split * PARTS + part) * M + m[None, :]).to(tl.int64) * R + begin
    tl.store(inner + r, total, mask=(m < M)[None, :] & (r < rank))


@triton.jit(do_not_specialize=["M"])
def _nf4_partial(
    x,
    packed,
    absmax,
    absmax2,
    offset,
    code2,
    codes,
    lora_A,
    partial,
    inner,
    M,
    x_stride,
    ROWS: tl.constexpr,
    STARTS: tl.constexpr,
    TILES: tl.constexpr,
    NUM_PLACES: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    INVERSE_FACTOR: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
    RANK_STARTS: tl.constexpr,
    PLACES: tl.constexpr,
    R: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FACTOR_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPAN: tl.constexpr,
    STEP: tl.constexpr,
    SINCE_3_7: tl.constexpr,
    SINCE_3_8: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    tile = tl.program_id(1)
    if NUM_PLACES > 0 and tile < NUM_PLACES:
        _multiply_factors(
            x,
            lora_A,
            inner,
            M,
            x_stride,
            tile,
            RANKS,
            RANK_STARTS,
            PLACES,
            R,
            K,
            COLUMNS,
            PARTS,
            BLOCK_M,
            FACTOR_M,
            BLOCK_R,
            STEP,
        )
        return

    # ---- which source, and where its rows begin in y ----
    tile -= NUM_PLACES
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
    split = tl.program_id(2)
    start = split * COLUMNS
    stop = tl.minimum(start + COLUMNS, K)
    # While the kernel before this one still runs: no kernel of a step writes weights.
    _prefetch(source_packed + (row * (K // 8) + start // 8), INTERPRET)
    _prefetch(source_absmax + (row * (K // 64) + start // 64), INTERPRET)

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
    # From 32 rows on, the eight registers are not to be had.
    table = _table_bytes(codes, x.dtype.element_ty, 32 if BLOCK_M < 32 else 0, INTERPRET)

    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    await_previous()
    mean = tl.load(source_offset)
    ahead = tl.load(source_packed + start // 8)
    for span in range(start, stop, SPAN):
        block = row * (K // 64) + span // 64
        # Of four blocks at once, where they are a word: each row's lie in a line of memory of their own.
        if SPAN == 256:
            indices = tl.load(source_absmax.to(tl.pointer_type(tl.int32)) + (block >> 2))
        else:
            indices = tl.load(source_absmax + block).to(tl.int32)
        outer = tl.load(source_absmax2 + (block >> 8))
        for first in range(span, span + SPAN, 64):
            words = _words(ahead, SINCE_3_7)
            # The last time those of this time again.
            ahead = tl.load(source_packed + tl.minimum(first + 64, stop - 64) // 8)
            scale = tl.load(source_code2 + ((indices >> ((first - span) // 8)) & 255))
            scale = scale * outer + mean
            x_tile = tl.load(x + first + place, mask=has_row, other=0.0)
            x0, x1, x2, x3 = _pairs(x_tile, SINCE_3_7)
            part = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
            w0, w1, w2, w3 = _look_up(words, table, codes, x_tile.dtype, 0, INTERPRET)
            part = _add_product(part, w0, w1, x0, SINCE_3_8)
            part = _add_product(part, w2, w3, x1, SINCE_3_8)
            w0, w1, w2, w3 = _look_up(words, table, codes, x_tile.dtype, 1, INTERPRET)
            part = _add_product(part, w0, w1, x2, SINCE_3_8)
            part = _add_product(part, w2, w3, x3, SINCE_3_8)
            scale = tl.broadcast_to(scale[:, None], (BLOCK_N, BLOCK_M))
            total = tl.fma(part, scale, total)

    # ---- where the sums go ----
    row_tile, tile, split = _program_again(INTERPRET or NUM_PLACES == 0)
    tile -= NUM_PLACES
    first_tile, begin, num_rows = 0, 0, ROWS[0]
    for source in tl.static_range(1, len(ROWS)):
        if tile >= TILES[source]:
            first_tile, begin, num_rows = TILES[source], STARTS[source], ROWS[source]
    n = (tile - first_tile) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    partial += (split * M + m).to(tl.int64) * N + begin
    mask = (m < M) & (n < num_rows)[:, None]
    tl.store(partial + n[:, None], total * INVERSE_FACTOR, mask=mask)


def nf4_linear(
    x: torch.Tensor,
    sources: Sequence[NF4Weight],
    *,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    loras: Sequence[LoraFactors | None] = (),
    adds: bool = False,
) -> None:
    """Write x @ W^T + scaling * (x @ A^T) @ B^T + bias, W [N, K] the sources' matrices one below the other.

    Args:
        x: [M, K] in bf16, fp16 or fp32, rows contiguous, any row stride; M at most `MAX_ROWS`, K a multiple of 64.
        sources: At least one; absmaxes, too, begin at multiples of 4 bytes.
        out: [M, N] of x's dtype, rows contiguous, any row stride: where to write.
        bias: [N] of x's dtype.
        loras: The adapter of each source, or nothing for all; both factors contiguous float32.
        adds: Add to what is in `out`, before the sum is rounded.

    Raises:
        ValueError: M or K is not supported.
    """
    check_shape(x)
    (num_rows, num_columns), num_features = x.shape, out.shape[1]
    features = tuple(source.shape[0] for source in sources)
    assert out.shape == (num_rows, sum(features))
    assert (out.dtype, x.stride(1), out.stride(1)) == (x.dtype, 1, 1)
    adapters = tuple(lora for lora in loras if lora is not None)
    for adapter in adapters:
        assert adapter.lora_A.is_contiguous()
        assert adapter.lora_B.is_contiguous()
    ranks = tuple(len(adapter.lora_A) for adapter in adapters)
    block_m = _block_m(num_rows, x.dtype)
    launch = _partial_launch(features, num_columns, x.dtype, block_m, ranks)
    of = launch.constants
    num_splits = cdiv(num_columns, of["COLUMNS"])
    partial = x.new_empty((num_splits, num_rows, num_features), dtype=torch.float32)
    inner = partial
    if adapters:
        inner = x.new_empty((num_splits * of["PARTS"], num_rows, of["R"]), dtype=torch.float32)
    num_tiles = of["TILES"][-1] + cdiv(features[-1], _BLOCK_N)
    _nf4_partial[cdiv(num_rows, block_m), of["NUM_PLACES"] + num_tiles, num_splits](
        x,
        tuple(source.packed.view(-1).view(torch.int32) for source in sources),
        tuple(source.absmax for source in sources),
        tuple(source.absmax2 for source in sources),
        tuple(source.offset for source in sources),
        tuple(source.code2 for source in sources),
        _table(x.dtype, x.device),
        tuple(adapter.lora_A for adapter in adapters) or (partial,),
        partial,
        inner,
        num_rows,
        x.stride(0),
        **launch.keywords,
    )
    add_sums(partial, inner, features, out=out, bias=bias, loras=loras, adds=adds)


def _columns(features: Sequence[int], num_columns: int) -> int:
    """Give the columns of a split: whole blocks, two if there are no odd ones, whatever the number of rows."""
    tiles = sum(cdiv(rows, _BLOCK_N) for rows in features)
    num_splits = triton.next_power_of_2(
        max(cdiv(_MIN_PROGRAMS, tiles), cdiv(num_columns, _MAX_COLUMNS))
    )
    grain = _span(num_columns)
    columns: int = cdiv(num_columns, num_splits * grain) * grain
    return max(columns, _MIN_COLUMNS)


def _span(num_columns: int) -> int:
    """Give the columns whose scales are read at once: four blocks, where no row ends within them, or one."""
    return 4 * _BLOCK if num_columns % (4 * _BLOCK) == 0 else _BLOCK


def _block_m(num_rows: int, dtype: torch.dtype) -> int:
    """Give the rows of x in a program; more than 16 in fp32 do not fit into the registers."""
    fitting = next(size for size in _BLOCK_M if size >= num_rows)
    return min(fitting, 16) if dtype == torch.float32 else fitting


@lru_cache(maxsize=8)
def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Give the bits of the 16 values, int32[16]; then, as int32[8], all their first bytes and all their second ones."""
    values = torch.tensor(NF4_CODE, dtype=torch.float64) * _CODE_FACTOR.get(dtype, 1.0)
    values = values.to(dtype)
    bits = values.view(torch.int32 if dtype.itemsize == 4 else torch.int16).to(torch.int32)
    planes = values.view(torch.uint8).view(16, -1)[:, :2].t().contiguous().view(-1)
    with torch.inference_mode(False):
        return torch.cat([bits, *(planes.view(torch.int32),) * 2]).to(device)


@cache
def _partial_launch(
    features: tuple[int, ...],
    num_columns: int,
    dtype: torch.dtype,
    block_m: int,
    ranks: tuple[int, ...] = (),
) -> Launch:
    tiles = [cdiv(rows, _BLOCK_N) for rows in features]
    columns = _columns(features, num_columns)
    parts = 2 if columns > _MAX_FACTOR_COLUMNS and columns % (2 * _FACTOR_STEP) == 0 else 1
    places = [cdiv(rank, _BLOCK_R) * parts for rank in ranks]
    constants = {
        "ROWS": features,
        "STARTS": starts(features),
        "TILES": starts(tiles),
        "N": sum(features),
        "K": num_columns,
        "INVERSE_FACTOR": 1 / _CODE_FACTOR.get(dtype, 1.0),
        "COLUMNS": columns,
        "RANKS": ranks,
        "RANK_STARTS": starts(ranks),
        "PLACES": starts(places),
        "NUM_PLACES": sum(places) * (block_m // _FACTOR_M),
        "R": sum(ranks),
        "PARTS": parts,
        "BLOCK_M": block_m,
        "BLOCK_N": _BLOCK_N,
        "FACTOR_M": _FACTOR_M,
        "BLOCK_R": _BLOCK_R,
        "STEP": _FACTOR_STEP,
        "SPAN": _span(num_columns),
        "INTERPRET": INTERPRETED,
        **_ORDER,
    }
    # Without fusion a scale has the bits of `nf4_scales`.
    return Launch(constants, num_warps=1, num_stages=1, enable_fp_fusion=False, is_early=True)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    fp32 = POINTER[torch.float32]
    for features, num_columns in _SHIPPED:
        count = len(features)
        arguments: dict[str, str | tuple[str, ...]] = {
            "x": POINTER[torch.bfloat16],
            "packed": ("*i32",) * count,
            "absmax": ("*u8",) * count,
            **dict.fromkeys(("absmax2", "offset", "code2"), (fp32,) * count),
            "codes": "*i32",
            "partial": fp32,
            "inner": fp32,
            "M": "i32",
            "x_stride": "i32",
        }
        for block_m, rank in product(_BLOCK_M, (0, _RANK)):
            ranks = (rank,) * count if rank else ()
            yield Variant(
                name=f"nf4_linear bf16 {sum(features)}x{num_columns} {block_m} rows rank {rank}",
                kernel=_nf4_partial,
                arguments={**arguments, "lora_A": (fp32,) * max(1, len(ranks))},
                launch=_partial_launch(features, num_columns, torch.bfloat16, block_m, ranks),
                divisible=frozenset({"x_stride"}),
                # mma.sync everywhere, also where the gate looks for wgmma or tcgen05.
                uses_matrix_units=capability not in (90, 100),
                values=None if rank else _BLOCK_N * _BLOCK,
            )
