# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The product of few rows with an NF4 matrix, unpacked in registers, as Triton kernels.

Equation, dimensions and dtypes as in `nf4_linear.py`, its reference; bf16, fp16 and fp32. Weights have the bits
`nf4_dequantize` gives; products are summed in fp32.

1. `_nf4_partial`: sums over `COLUMNS` of the K columns (a split), for 64 or 128 rows of W and 16 or 32 rows of x.
2. `_lora_partial`, with an adapter: x @ A^T over the same columns.
3. `_finish`: adds the splits in order, then scaling * (x @ A^T) @ B^T and the bias, and rounds once.

Splits fill the GPU where N alone does not: N / 64 * splits >= 384 programs of two warps, as long as a split keeps 256
columns. They depend on N and K alone, and every kernel gives an element its products in the same order of steps of 16,
so that a row's bits depend on that row alone, and not on M either. (So it is in the interpreter; on a GPU it
rests on the matrix instruction, the same m16n8k16 for either number of rows, doing the same for every element.)

Memory traffic: W once, 0.516 byte a weight (half a byte, and 1 + 4 / 256 bytes a block of 64); x and y, M * (K + N)
values; sums of S splits, written and read, mostly in the L2 cache. One row of M costs at least

    0.516 * N * K / M + size(dtype) * (K + N) + 8 * S * N bytes.

N = K = 4096 in bf16, S = 8: 8.66 MB for W, 0.28 MB a row. W is 97 % of that at M = 1, 66 % at M = 16, 33 % at M = 64.
More than 16 rows unpack W once for every 32, the second time out of the L2 cache.

Memory is not the only limit: 132 SMs issue at most 132 * 128 instructions of a thread a clock. At 1.7 GHz and 5.3
instructions a weight these are 5.4e12 weights or 2.8 TB a second, less than the memory of an H200 (4.8 TB/s) or H100
(3.35) gives; a 4090 (1.0) is bound by memory. So instructions were counted, in the loop, by compiling for sm_80 and
sm_90: 5.0 and 5.3 a weight for 16 rows, 5.6 and 5.9 for 32; 3.4 of them look up, scale and round. Not yet measured on
a GPU.

Why so:
- A word of eight indices is loaded as it lies. Index j of every word makes a product of its own with the columns
  j, j + 8, ... of x, so that no weight ever changes places between threads; x, which is small, is rearranged instead.
- W is the right operand. Loaded with 16 bytes a thread, it then is in the places the matrix instruction wants it
  (with W on the left every weight went through shared memory: 6.2 to 6.6 instructions on sm_80, 5.0 with wgmma, whose
  order of sums would be another one).
- The table of 16 values lies in the lanes of a warp and a shuffle looks up: an instruction instead of a mask, two for
  the address and a load (6.1 to 6.6 instead of 8.4 to 8.9), and no conflicts. Selecting by the four bits takes 19.
- M = 1 is not multiplied and reduced: 7.2 instructions, for unpacking the rounded weights and for products that the
  matrix instruction, whose 15 idle rows cost nothing, does not need; and bits at M = 1 would be others.
- Only the next indices are loaded ahead, in registers. With scales and x ahead too the compiler chose other layouts,
  6.8 instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import INTERPRETED, POINTER, Launch, Variant
from fam_engine.kernels.nf4_dequantize import NF4_CODE, LoraFactors
from fam_engine.kernels.nf4_linear import check_shape

# Columns of a step: 64 bytes of indices a row, 16 for each of four neighbouring threads.
_STEP: Final = 128
# Two programs for each of an H100's 132 SMs, and room for a power of two.
_MIN_PROGRAMS: Final = 384
# A split of two steps still hides the second one's load.
_MIN_COLUMNS: Final = 256
# The side of a tile of x @ A^T.
_LORA_BLOCK: Final = 16
# A tile of y.
_FINISH_BLOCK: Final = (16, 64)


@dataclass(frozen=True)
class _Tile:
    """A program of `_nf4_partial`: rows of x, rows of W, warps. A warp has 32 rows of W."""

    block_m: int
    block_n: int
    num_warps: int


# For at most 16 rows, and for more. 64 rows in one program do not fit into the registers.
_FEW: Final = _Tile(16, 64, 2)
_MORE: Final = _Tile(32, 128, 4)

# (N, K) of Llama-3.2 1B (q and o; gate and up), 3B (down), Llama-3.1 8B (k and v; gate and up; down).
_SHIPPED: Final = (
    (2048, 2048),
    (8192, 2048),
    (3072, 8192),
    (1024, 4096),
    (14336, 4096),
    (4096, 14336),
)
# Of these with an adapter, of this rank.
_SHIPPED_LORA: Final = ((1024, 4096), (4096, 14336))
_RANK: Final = 16

# Value $1 & 15 of the 16 at address $2. Lane i holds value i & 15; of the lane asked for, a shuffle regards five bits.
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
        x_tile = tl.load(x + first, mask=(m < M) & (WHOLE | (first + k < stop)), other=0.0)
        at = row * (K // 64) + first // 64 + block
        inside = WHOLE | (first + 64 * block < stop)
        scale = tl.load(code2 + tl.load(absmax + at, mask=inside, other=0).to(tl.int32))
        scale = scale * tl.load(absmax2 + (at >> 8), mask=inside, other=0.0) + mean
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
def _add_splits(partial, M, mask, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    total = tl.load(partial, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partial + tl.cast(split * WIDTH, tl.int64) * M, mask=mask, other=0.0)
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


def nf4_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    absmax: torch.Tensor,
    absmax2: torch.Tensor,
    offset: torch.Tensor,
    code2: torch.Tensor,
    *,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    lora: LoraFactors | None = None,
) -> None:
    """Write x @ W^T + scaling * (x @ A^T) @ B^T + bias, of one NF4 matrix W [N, K].

    Args:
        x: [M, K] in bf16, fp16 or fp32, rows contiguous, any row stride; M at most `MAX_ROWS`, K a multiple of 64.
        packed: uint8[N * K / 2]; this and the next four as in `nf4_dequantize`.
        absmax: uint8[N * K / 64].
        absmax2: float32[ceil(num_blocks / 256)].
        offset: float32[].
        code2: float32[256].
        out: [M, N] of x's dtype, rows contiguous, any row stride: where to write.
        bias: [N] of x's dtype.
        lora: The adapter, both of its factors contiguous float32.

    Raises:
        ValueError: M or K is not supported.
    """
    check_shape(x)
    (num_rows, num_columns), num_features = x.shape, out.shape[1]
    assert out.shape[0] == num_rows
    assert (out.dtype, x.stride(1), out.stride(1)) == (x.dtype, 1, 1)
    assert packed.numel() * 2 == absmax.numel() * 64 == num_features * num_columns
    rank = 0 if lora is None else lora.lora_A.shape[0]
    num_splits = triton.cdiv(num_columns, _split(num_features, num_columns))

    def partial_sums(width: int) -> torch.Tensor:
        return torch.empty((num_splits, num_rows, width), dtype=torch.float32, device=x.device)

    partial = partial_sums(num_features)
    tile = _FEW if num_rows <= _FEW.block_m else _MORE
    grid = (
        triton.cdiv(num_rows, tile.block_m),
        triton.cdiv(num_features, tile.block_n),
        num_splits,
    )
    _nf4_partial[grid](
        x,
        packed.view(-1).view(torch.int32),
        absmax,
        absmax2,
        offset,
        code2,
        _codes(x.device),
        partial,
        num_rows,
        x.stride(0),
        **_partial_launch(num_features, num_columns, tile).keywords,
    )
    lora_partial = lora_B = partial  # not looked at without an adapter
    if lora is not None:
        assert lora.lora_A.is_contiguous()
        assert lora.lora_B.is_contiguous()
        lora_partial, lora_B = partial_sums(rank), lora.lora_B
        grid = (triton.cdiv(num_rows, _LORA_BLOCK), triton.cdiv(rank, _LORA_BLOCK), num_splits)
        launch = _lora_launch(num_features, num_columns, rank)
        _lora_partial[grid](x, lora.lora_A, lora_partial, num_rows, x.stride(0), **launch.keywords)
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
        **_finish_launch(num_features, num_columns, rank, has_bias=bias is not None).keywords,
    )


def _split(num_features: int, num_columns: int) -> int:
    """Give the columns of a split: whole steps, whatever the number of rows."""
    blocks = triton.cdiv(num_features, _FEW.block_n)
    num_splits = triton.next_power_of_2(triton.cdiv(_MIN_PROGRAMS, blocks))
    num_steps: int = triton.cdiv(num_columns, num_splits * _STEP)
    return max(num_steps * _STEP, _MIN_COLUMNS)


@lru_cache(maxsize=8)
def _codes(device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(NF4_CODE, dtype=torch.float32, device=device)


def _partial_launch(num_features: int, num_columns: int, tile: _Tile) -> Launch:
    constants = {
        "N": num_features,
        "K": num_columns,
        "COLUMNS": _split(num_features, num_columns),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "STEP": _STEP,
        "INTERPRET": INTERPRETED,
    }
    # Without fusion a scale has the bits of `nf4_scales`.
    return Launch(constants, num_warps=tile.num_warps, num_stages=1, enable_fp_fusion=False)


def _lora_launch(num_features: int, num_columns: int, rank: int) -> Launch:
    constants = {
        "K": num_columns,
        "R": rank,
        "COLUMNS": _split(num_features, num_columns),
        "BLOCK_M": _LORA_BLOCK,
        "BLOCK_R": _LORA_BLOCK,
        "STEP": _STEP,
    }
    return Launch(constants, num_stages=1)


def _finish_launch(num_features: int, num_columns: int, rank: int, *, has_bias: bool) -> Launch:
    constants = {
        "N": num_features,
        "R": rank,
        "SPLITS": triton.cdiv(num_columns, _split(num_features, num_columns)),
        "HAS_BIAS": has_bias,
        "BLOCK_M": _FINISH_BLOCK[0],
        "BLOCK_N": _FINISH_BLOCK[1],
        "BLOCK_R": _LORA_BLOCK,
    }
    return Launch(constants, num_stages=1)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    value, fp32 = POINTER[torch.bfloat16], POINTER[torch.float32]
    rows = {"x": value, "partial": fp32, "M": "i32", "x_stride": "i32"}
    scales = {"absmax": "*u8"} | dict.fromkeys(("absmax2", "offset", "code2", "codes"), fp32)
    for num_features, num_columns in _SHIPPED:
        for tile in (_FEW, _MORE):
            yield Variant(
                name=f"nf4_linear bf16 {num_features}x{num_columns} {tile.block_m} rows",
                kernel=_nf4_partial,
                arguments=rows | scales | {"packed": "*i32"},
                launch=_partial_launch(num_features, num_columns, tile),
                divisible=frozenset({"x_stride"}),
                # mma.sync everywhere, also where the gate looks for wgmma or tcgen05.
                uses_matrix_units=capability not in (90, 100),
                values=tile.block_n * _STEP,
            )
    for num_features, num_columns in _SHIPPED_LORA:
        yield Variant(
            name=f"nf4_linear bf16 {num_features}x{num_columns} lora rank {_RANK}",
            kernel=_lora_partial,
            arguments=rows | {"lora_A": fp32},
            launch=_lora_launch(num_features, num_columns, _RANK),
            divisible=frozenset({"x_stride"}),
        )
        for rank in (0, _RANK):
            yield Variant(
                name=f"nf4_linear bf16 {num_features}x{num_columns} finish rank {rank}",
                kernel=_finish,
                arguments=dict.fromkeys(("partial", "lora_partial", "lora_B"), fp32)
                | {"scaling": "fp32", "bias": value, "out": value, "M": "i32", "out_stride": "i32"},
                launch=_finish_launch(num_features, num_columns, rank, has_bias=False),
                divisible=frozenset({"out_stride"}),
            )
