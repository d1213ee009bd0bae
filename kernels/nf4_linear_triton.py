# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The product of few rows with an NF4 matrix that never becomes a dense one, as Triton kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import INTERPRETED, POINTER, Launch, Variant
from fam_engine.kernels.nf4_dequantize import NF4_CODE
from fam_engine.kernels.nf4_linear import Lora, check_shape

# Columns of a step: 64 bytes of indices a row, which four neighbouring threads load 16 each.
_STEP: Final = 128
# Ranks of an adapter a program takes at a time.
_RANKS: Final = 16
# Threads blocks' worth of ... see `_split`.
_MIN_PROGRAMS: Final = 384
_MIN_COLUMNS: Final = 256

# Value $1 & 15 of the table at $2: lane i of a warp holds value i & 15, and a shuffle, which regards five bits, asks for it.
_LOOK_UP = tl.constexpr("""{
    .reg .b32 lane, value;
    .reg .b64 address;
    mov.u32 lane, %laneid;
    and.b32 lane, lane, 15;
    mad.wide.u32 address, lane, 4, $2;
    ld.global.nc.b32 value, [address];
    shfl.sync.idx.b32 $0, value, $1, 31, 0xffffffff;
}""")


@triton.jit
def _look_up(index, codes, INTERPRET: tl.constexpr):
    if INTERPRET:
        return tl.load(codes + (index & 15))
    else:
        return tl.inline_asm_elementwise(
            _LOOK_UP, "=f,r,l", [index, codes], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _columns(x, WORDS: tl.constexpr):
    """Give x[:, j::8] for j = 0 to 7."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], WORDS, 2, 2, 2)))
    even0, even2 = tl.split(even)
    odd1, odd3 = tl.split(odd)
    x0, x4 = tl.split(even0)
    x2, x6 = tl.split(even2)
    x1, x5 = tl.split(odd1)
    x3, x7 = tl.split(odd3)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
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
    N: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    WORDS: tl.constexpr = STEP // 8
    BLOCKS: tl.constexpr = STEP // 64
    WHOLE: tl.constexpr = K % STEP == 0
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    split = tl.program_id(2)
    start = split * COLUMNS
    stop = tl.minimum(start + COLUMNS, K)
    k = tl.arange(0, STEP)[None, :]
    word = tl.arange(0, WORDS)[:, None]
    block = tl.arange(0, BLOCKS)[:, None]
    # Rows of W from N on are taken to be the last one; what they give is not stored.
    row = tl.minimum(n, N - 1).to(tl.int64)
    x += m.to(tl.int64) * x_stride + k
    packed += row * (K // 8) + word
    mean = tl.load(offset)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)

    words = tl.load(packed + start // 8, mask=start + 8 * word < stop, other=0)
    for first in range(start, stop, STEP):
        after = first + STEP
        next_words = tl.load(packed + after // 8, mask=after + 8 * word < stop, other=0)
        x_tile = tl.load(x + first, mask=(m < M) if WHOLE else (m < M) & (first + k < stop), other=0.0)
        at = row * (K // 64) + first // 64 + block
        inside = None if WHOLE else first + 64 * block < stop
        scale = tl.load(code2 + tl.load(absmax + at, mask=inside).to(tl.int32))
        scale = scale * tl.load(absmax2 + (at >> 8), mask=inside) + mean
        scale = tl.broadcast_to(scale[:, None, :], (BLOCKS, 8, BLOCK_N))
        scale = tl.reshape(scale, (WORDS, BLOCK_N))
        columns = _columns(x_tile, WORDS)
        for j in tl.static_range(8):
            index = words >> (8 * (j // 2) + 4 * (1 - j % 2))
            weight = (_look_up(index, codes, INTERPRET) * scale).to(x_tile.dtype)
            total = tl.dot(columns[j], weight, total, input_precision="ieee")
        words = next_words

    partial += (split * M + m).to(tl.int64) * N
    tl.store(partial + n, total, mask=(m < M) & (n < N))


@triton.jit
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
    k = tl.arange(0, STEP)
    x += m.to(tl.int64) * x_stride + k[None, :]
    lora_A += r * K + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    # K is a multiple of STEP.
    for first in range(start, tl.minimum(start + COLUMNS, K), STEP):
        x_tile = tl.load(x + first, mask=m < M, other=0.0).to(tl.float32)
        a = tl.load(lora_A + first, mask=r < R, other=0.0)
        total = tl.dot(x_tile, a, total, input_precision="ieee")
    partial += (split * M + m).to(tl.int64) * R
    tl.store(partial + r, total, mask=(m < M) & (r < R))


@triton.jit
def _add_splits(partial, M, mask, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    total = tl.load(partial, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partial + tl.cast(split * WIDTH, tl.int64) * M, mask=mask, other=0.0)
    return total


@triton.jit
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
    R: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    inside = (m < M) & (n < N)
    total = _add_splits(partial + m.to(tl.int64) * N + n, M, inside, N, SPLITS)
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
    tl.store(out, total.to(out.dtype.element_ty), mask=inside)
