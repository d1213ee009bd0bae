"""NF4 to floating point, in plain torch: the reference, and the CPU's own path.

Every other dequantizer is compared with it. For value i of the flattened row-major matrix, in
block b = i // 64:

    weight[i] = round(NF4[index[i]] * (code2[absmax[b]] * absmax2[b // 256] + offset))

Every product and sum is rounded to float32 on its own (a fused multiply-add would give other bits),
the last rounding goes to the output dtype. This is what bitsandbytes computes, bit for bit. Any
shape: blocks straddle rows where K % 64 != 0.

In: uint8 pairs of indices and the two levels of scales. Out: the matrix, into scratch memory when
given. Memory traffic: 0.5 byte in and one value out per weight. A byte is looked up whole: a table
of 256 pairs, each pair read as one 64-bit word, is 2.5 to 5 times faster than fancy indexing.
Chunks keep the float32 values before scaling in the cache: 0.55 ns a value on one core (AVX-512),
against 0.78 (to fp32) and 4.4 (to bf16) in one piece; bitsandbytes' C++ takes 0.2.

Rows far apart, and a merged adapter (weight + scaling * B @ A, added before the last rounding), take
a detour through chunks of rows in float32: here they are a reference more than a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch

BLOCK_SIZE: Final = 64
NESTED_BLOCK_SIZE: Final = 256
# 2^19 values: 2 MB of float32, the L2 cache of a server core.
BLOCKS_PER_CHUNK: Final = 8192

# The 16 values of NF4 (QLoRA, Dettmers et al. 2023, appendix E), as float32.
NF4_CODE: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True, kw_only=True)
class LoraFactors:
    """What an adapter adds to a matrix of shape (N, K): scaling * lora_B @ lora_A.

    Attributes:
        lora_A: [R, K] in any floating dtype.
        lora_B: [N, R] in the same.
        scaling: Factor of the product.
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: float


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
        packed: uint8[ceil(N * K / 2)], the first value of a pair in the high half of the byte.
        absmax: uint8[ceil(N * K / 64)], indices into `code2`.
        absmax2: float32[ceil(num_blocks / 256)].
        offset: float32[].
        code2: float32[256].
        shape: (N, K).
        dtype: Dtype of the result: bf16, fp16, fp32, or fp64 (which holds the fp32 values).
        out: [N, K] of that dtype on the same device, rows contiguous, any row stride: where to
            write. A new tensor by default.
        lora: An adapter to add, in float32 or wider, before the only rounding.

    Returns:
        [N, K] in `dtype`; `out` itself when given.
    """
    num_rows, num_columns = shape
    num_values = num_rows * num_columns
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=packed.device)
    assert (out.shape, out.dtype) == (shape, dtype)
    assert out.stride(1) == 1 or num_columns == 1
    assert packed.numel() == -(-num_values // 2)
    assert absmax.numel() == -(-num_values // BLOCK_SIZE)
    packed, scale = packed.view(-1), nf4_scales(absmax, absmax2, offset, code2)
    if lora is None and out.is_contiguous():
        _write_values(packed, scale, out.view(-1))
        return out
    for rows in _row_chunks(num_rows, num_columns):
        first, last = rows.start * num_columns, rows.stop * num_columns
        wide = out.new_empty((rows.stop - rows.start, num_columns), dtype=_wide(dtype))
        pairs = packed[first // 2 : -(-last // 2)]
        _write_values(pairs, scale[first // BLOCK_SIZE : -(-last // BLOCK_SIZE)], wide.view(-1))
        if lora is not None:
            wide.addmm_(lora.lora_B[rows].to(wide) * lora.scaling, lora.lora_A.to(wide))
        out[rows] = wide
    return out


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _row_chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Cut the rows into chunks that begin with a block, whatever the columns: 64 rows or more."""
    step = BLOCK_SIZE * max(BLOCKS_PER_CHUNK // num_columns, 1)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def _write_values(packed: torch.Tensor, scale: torch.Tensor, values: torch.Tensor) -> None:
    """Write consecutive values; the first one begins a block."""
    table = _pair_table(packed.device)
    num_full = values.numel() // BLOCK_SIZE
    for first in range(0, num_full, BLOCKS_PER_CHUNK):
        last = min(first + BLOCKS_PER_CHUNK, num_full)
        pairs = packed[first * BLOCK_SIZE // 2 : last * BLOCK_SIZE // 2]
        torch.mul(
            _look_up(table, pairs).view(-1, BLOCK_SIZE),
            scale[first:last, None],
            out=values[first * BLOCK_SIZE : last * BLOCK_SIZE].view(-1, BLOCK_SIZE),
        )
    tail = values.numel() - num_full * BLOCK_SIZE
    if tail:  # the last block is shorter, and of an odd number of values the last half byte is void
        last_values = _look_up(table, packed[num_full * BLOCK_SIZE // 2 :])[:tail]
        torch.mul(last_values, scale[num_full], out=values[num_full * BLOCK_SIZE :])


def nf4_scales(
    absmax: torch.Tensor, absmax2: torch.Tensor, offset: torch.Tensor, code2: torch.Tensor
) -> torch.Tensor:
    """Undo the double quantization: float32[num_blocks] from the arguments of `nf4_dequantize`."""
    absmax = absmax.view(-1)
    nested = absmax2.view(-1).repeat_interleave(NESTED_BLOCK_SIZE)[: absmax.numel()]
    return torch.index_select(code2, 0, absmax.int()).mul_(nested).add_(offset)


def _look_up(table: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Give float32[2 * n], unscaled, from uint8[n]."""
    return torch.index_select(table, 0, pairs.int()).view(torch.float32)


@lru_cache(maxsize=8)
def _pair_table(device: torch.device) -> torch.Tensor:
    """Give int64[256]: for each byte, its two float32 values as one word."""
    # A tensor made in inference mode could not be used in autograd later, and this one outlives the
    # call.
    with torch.inference_mode(False):
        code = torch.tensor(NF4_CODE, dtype=torch.float32)
        byte = torch.arange(256)
        pairs = torch.stack((code[byte >> 4], code[byte & 15]), dim=1)
        return pairs.view(torch.int64).view(-1).to(device)
