# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""NF4 to floating point, as one Triton kernel.

Equation and bits as in `nf4_dequantize.py`, its reference, for rows of whole blocks (K % 64 == 0).
Every product and sum is rounded on its own: compiled without fused multiply-adds. An adapter's
product comes from tensor cores, each factor as a sum of two TF32 numbers, which is about float32,
and is added before the only rounding.

Dimensions: N rows, K columns, R rank of the adapter.
Dtypes: uint8 in, scales in fp32; bf16, fp16 or fp32 out.
Memory traffic a weight: 0.516 byte in and one value out, in one launch. bitsandbytes (0.50) undoes
the double quantization in two launches of their own, through memory. With an adapter a program also
reads its parts of A and B, for 64 x 128 weights 192 R values, from the L2 cache.

One program makes 128 blocks of 64 weights, `ROWS` by `BLOCKS`: a scale for each of its 128 threads,
handed on to where the block's weights are made. Packed bytes are loaded as 32-bit words, 16 bytes a
thread, and change hands in shared memory, so that every store is of 16 bytes beside the neighbour's.

The 16 values lie in shared memory, in 16 different banks: a warp looks up 32 weights at once. That
is 6.4 to 8.1 instructions a weight for all K and GPUs compiled for, 4.5 of them the least this way
(shift, mask, look-up, product, half a conversion). Rejected, by the same count for sm_90 and
K = 4096, where the kernel has 6.8, and 76 registers:

- the table in global memory (L1): 10.4, for an address there takes two instructions more;
- a tree of selects: 17.9;
- `tl.gather` from a table a block, which becomes shuffles: 19.3;
- packed bytes loaded as bytes, 7.6, or as 64-bit words, 8.0;
- half the weights a thread: 9.5, with 32 registers; twice: 6.0, with 151;
- a table of all 256 pairs in shared memory: 5.3, but 16 threads that read 8 bytes each at random
  meet 2.9 deep in the same bank: 5.8 cycles for 64 weights, where all instructions take 3.4 here.

With an adapter of rank 16 it is 17.9 to 18.9, and would be 29 by multiply-adds of float32.
Measured on an H100: 93 to 96 % of the rate of a copy, with an adapter 34 to 38 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv
from fam_engine.kernels.nf4_dequantize import BLOCK_SIZE, NF4_CODE, LoraFactors

# Blocks a program: one scale a thread.
_NUM_BLOCKS: Final = 128
# Of them in a row where an adapter is merged: 64 x 128 weights, a shape for matrix instructions.
_MERGED_ROW_BLOCKS: Final = 2
_DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)
# Columns of Qwen2.5-0.5B, Llama-3.2 1B and 3B, Llama-3.1 8B (rows do not change what is compiled).
_SHIPPED: Final = (896, 2048, 3072, 4096, 8192, 14336)
# Columns do not change much with an adapter; whether the sum over its rank is a loop does.
_SHIPPED_RANKS: Final = (16, 64)


@triton.jit(do_not_specialize=["N"])
def _nf4_dequantize(
    packed,
    absmax,
    absmax2,
    offset,
    code2,
    code,
    lora_A,
    lora_B,
    out,
    N,
    out_stride,
    scaling,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    R: tl.constexpr,
):
    # ---- which weights: blocks of this program, row by row
    NUM_BLOCKS: tl.constexpr = ROWS * BLOCKS
    ROW_BLOCKS: tl.constexpr = K // 64
    tile = tl.program_id(0)
    first_row = (tile // (ROW_BLOCKS // BLOCKS) * ROWS).to(tl.int64)
    first_column = tile % (ROW_BLOCKS // BLOCKS) * BLOCKS * 64
    row = first_row + tl.arange(0, NUM_BLOCKS) // BLOCKS
    column = first_column + tl.arange(0, NUM_BLOCKS) % BLOCKS * 64
    block = row * ROW_BLOCKS + column // 64
    inside = row < N
    # ---- the adapter's product, first: it needs most registers
    delta = tl.zeros((ROWS, BLOCKS * 64), tl.float32)
    if R > 0:
        row_B = first_row + tl.arange(0, ROWS)[:, None]
        column_A = first_column + tl.arange(0, BLOCKS * 64)[None, :]
        for first in range(0, R, 16):
            rank = first + tl.arange(0, 16)
            part_B = row_B * R + rank[None, :]
            part_B = tl.load(lora_B + part_B, mask=(row_B < N) & (rank < R)[None, :], other=0.0)
            part_A = rank[:, None] * K + column_A
            part_A = tl.load(lora_A + part_A, mask=(rank < R)[:, None], other=0.0)
            delta = tl.dot(
                part_B.to(tl.float32) * scaling,
                part_A.to(tl.float32),
                delta,
                input_precision="tf32x3",
            )
    # ---- scales
    level = tl.load(code2 + tl.load(absmax + block, mask=inside, other=0).to(tl.int32))
    scale = level * tl.load(absmax2 + (block >> 8), mask=inside, other=0.0) + tl.load(offset)
    # ---- weights: eight words a block, eight weights a word, the high half of a byte first
    word = tl.arange(0, 8)[None, :]
    words = packed.to(tl.pointer_type(tl.uint32)) + block[:, None] * 8 + word
    words = tl.load(words, mask=inside[:, None], other=0)
    shift = (tl.arange(0, 8) ^ 1)[None, None, :] * 4
    index = tl.reshape((words[:, :, None] >> shift) & 15, (NUM_BLOCKS * 64,)).to(tl.int32)
    weight = tl.gather(tl.load(code + tl.arange(0, 16)), index, axis=0)
    weight = tl.reshape(weight, (NUM_BLOCKS, 64)) * scale[:, None]
    if R > 0:
        weight += tl.reshape(delta, (NUM_BLOCKS, 64))
    # ---- store
    place = (row * out_stride + column)[:, None] + tl.arange(0, 64)[None, :]
    tl.store(out + place, weight.to(out.dtype.element_ty), mask=inside[:, None])


def nf4_dequantize(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    absmax2: torch.Tensor,
    offset: torch.Tensor,
    code2: torch.Tensor,
    *,
    shape: tuple[int, int],
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
    lora: LoraFactors | None = None,
) -> torch.Tensor:
    """Dequantize one NF4 matrix of shape (N, K), with an adapter merged if one is given.

    Args:
        packed: uint8[N * K / 2], the first value of a pair in the high half of the byte.
        absmax: uint8[N * K / 64], indices into `code2`.
        absmax2: float32[ceil(num_blocks / 256)].
        offset: float32[].
        code2: float32[256].
        shape: (N, K).
        dtype: Dtype of the result: bf16, fp16 or fp32.
        out: [N, K] of that dtype on the same device, rows contiguous, any row stride: where to
            write. A new tensor by default.
        lora: An adapter to add, in float32, before the only rounding.

    Returns:
        [N, K] in `dtype`; `out` itself when given.

    Raises:
        ValueError: K is not a multiple of 64, or another dtype.
    """
    num_rows, num_columns = shape
    if num_columns % BLOCK_SIZE:
        raise ValueError(
            f"the kernel needs a multiple of {BLOCK_SIZE} columns; found K = {num_columns}"
        )
    if dtype not in _DTYPES:
        raise ValueError(f"the kernel writes bfloat16, float16 or float32; asked for {dtype}")
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=packed.device)
    assert (out.shape, out.dtype) == (shape, dtype)
    assert out.stride(1) == 1
    assert packed.numel() * 2 == absmax.numel() * BLOCK_SIZE == num_rows * num_columns
    assert packed.data_ptr() % 4 == 0
    assert packed.is_contiguous()
    assert absmax.is_contiguous()
    if lora is not None:
        assert lora.lora_A.shape[1] == num_columns
        assert lora.lora_B.shape == (num_rows, lora.lora_A.shape[0])
        assert lora.lora_A.is_contiguous()
        assert lora.lora_B.is_contiguous()
    code = _code(packed.device)
    launch = _launch(num_columns, lora.lora_A.shape[0] if lora else 0)
    tile_rows, tile_blocks = launch.constants["ROWS"], launch.constants["BLOCKS"]
    grid = (cdiv(num_rows, tile_rows) * (num_columns // BLOCK_SIZE // tile_blocks),)
    _nf4_dequantize[grid](
        packed,
        absmax,
        absmax2,
        offset,
        code2,
        code,
        lora.lora_A if lora else code,
        lora.lora_B if lora else code,
        out,
        num_rows,
        out.stride(0),
        lora.scaling if lora else 0.0,
        **launch.keywords,
    )
    return out


@cache
def _launch(num_columns: int, rank: int) -> Launch:
    """Take as many blocks of a row as divide it, and rows to make up the number of blocks."""
    num_blocks = num_columns // BLOCK_SIZE
    blocks = min(num_blocks & -num_blocks, _MERGED_ROW_BLOCKS if rank else _NUM_BLOCKS)
    constants = {"K": num_columns, "ROWS": _NUM_BLOCKS // blocks, "BLOCKS": blocks, "R": rank}
    # In stages, the loop over a rank of 64 is unrolled and spills on sm_80.
    return Launch(constants, num_stages=1, enable_fp_fusion=False)


@lru_cache(maxsize=8)
def _code(device: torch.device) -> torch.Tensor:
    """Give the table on a device, made outside inference mode, for it outlives the call."""
    with torch.inference_mode(False):
        return torch.tensor(NF4_CODE, dtype=torch.float32, device=device)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    for num_columns, rank in [*((K, 0) for K in _SHIPPED), *((4096, R) for R in _SHIPPED_RANKS)]:
        byte, wide = POINTER[torch.uint8], POINTER[torch.float32]
        arguments = {
            "packed": byte,
            "absmax": byte,
            "absmax2": wide,
            "offset": wide,
            "code2": wide,
            "code": wide,
            "lora_A": wide,
            "lora_B": wide,
            "out": POINTER[torch.bfloat16],
            "N": "i32",
            "out_stride": "i32",
            "scaling": "fp32",
        }
        yield Variant(
            name=f"nf4_dequantize bf16 {num_columns}" + f" rank {rank}" * bool(rank),
            kernel=_nf4_dequantize,
            arguments=arguments,
            launch=_launch(num_columns, rank),
            divisible=frozenset({"out_stride"}),
            uses_matrix_units=bool(rank),
            values=_NUM_BLOCKS * BLOCK_SIZE,
        )
