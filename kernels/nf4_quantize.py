"""Floating point to NF4, in plain torch: the reference, and the CPU's own path.

For value i of the flattened row-major matrix, in block b = i // 64:

    absmax[b] = max |weight[i]| over the block
    index[i] = how many of the 15 midpoints between neighbours of the NF4 table are below
               weight[i] * (1 / max(absmax[b], 1e-38))

so a value in the middle gets the lower index. Quotient, product and midpoints are rounded to float32 each on its own.
This is what bitsandbytes (0.50, on a CPU) computes, bit for bit, its last block too: shorter than 64 where N * K has no
multiple of it, and divided by its absmax instead of multiplied. The absmaxes are quantized again by `model.nf4`.

In: a matrix of finite values. Out: uint8 pairs of indices, the first in the high half, and float32 absmaxes. Memory
traffic: one value in, half a byte and 1 / 16 byte out per weight.

No value is searched for: the range from -1 to 1 is cut into 254 cells, none with more than one midpoint in it; a table
says how many are below a cell, and one comparison settles the rest. Together 7.3 ns a value on one core (AVX-512);
bitsandbytes searches, in 36 ns, and 15 comparisons take 25. Chunks stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import torch

from fam_engine.kernels.nf4_dequantize import BLOCK_SIZE, NF4_CODE

# 2^17 values: 512 KB of float32, of which four live at a time. 512 blocks and 8192 take a fifth longer.
_BLOCKS_PER_CHUNK: Final = 2048
# Of smaller absmaxes the inverse would be infinite.
SMALLEST: Final = 1e-38
# Cells on either side of 0; midpoints are 0.07 apart or more.
_CELLS: Final = 127


def nf4_quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize one matrix.

    Args:
        weight: [N, K] in bf16, fp16 or fp32, contiguous, finite.

    Returns:
        uint8[ceil(N * K / 2)] and float32[ceil(N * K / 64)].
    """
    values = weight.view(-1)
    num_values = values.numel()
    packed = torch.empty(-(-num_values // 2), dtype=torch.uint8, device=weight.device)
    absmax = packed.new_empty(-(-num_values // BLOCK_SIZE), dtype=torch.float32)
    for blocks in _chunks(num_values // BLOCK_SIZE):
        first, last = blocks.start * BLOCK_SIZE, blocks.stop * BLOCK_SIZE
        wide = values[first:last].view(-1, BLOCK_SIZE).float()
        largest = torch.amax(wide.abs(), 1, out=absmax[blocks])
        scaled = wide * largest.clamp(min=SMALLEST).reciprocal()[:, None]
        packed[first // 2 : last // 2] = _pairs(scaled.view(-1))
    tail = values[num_values // BLOCK_SIZE * BLOCK_SIZE :].float()
    if tail.numel():
        absmax[-1] = tail.abs().max().clamp(min=SMALLEST)
        # Of an odd number of values the last half byte is the index of 0.
        tail = torch.nn.functional.pad(tail / absmax[-1], (0, tail.numel() % 2))
        packed[len(packed) - tail.numel() // 2 :] = _pairs(tail)
    return packed, absmax


def _chunks(num_blocks: int) -> Iterator[slice]:
    for start in range(0, num_blocks, _BLOCKS_PER_CHUNK):
        yield slice(start, min(start + _BLOCKS_PER_CHUNK, num_blocks))


def _pairs(scaled: torch.Tensor) -> torch.Tensor:
    """Give uint8[n / 2] from values between -1 and 1, or the least bit beyond."""
    below, next_midpoint = _tables(scaled.device)
    cell = (scaled * _CELLS).to(torch.int32).add_(_CELLS)
    index = torch.index_select(below, 0, cell)
    index += scaled > torch.index_select(next_midpoint, 0, cell)
    # As words of two bytes, the first of them the lower one.
    words = index.view(torch.int16)
    return ((words << 4) | (words >> 8)).to(torch.uint8)


@lru_cache(maxsize=1)
def midpoints() -> torch.Tensor:
    """Give float32[15], the middles between neighbours of the NF4 table."""
    with torch.inference_mode(False):
        code = torch.tensor(NF4_CODE, dtype=torch.float32)
        return (code[:-1] + code[1:]) / 2


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Give for each cell uint8, how many midpoints lie in cells below, and float32, the midpoint after these.

    A cell's number grows with the value, rounding included: what is in a lower cell is below.
    """
    with torch.inference_mode(False):
        middle = midpoints()
        cell_of_middle = (middle * _CELLS).to(torch.int32) + _CELLS
        below = (cell_of_middle < torch.arange(2 * _CELLS + 1)[:, None]).sum(1)
        after = torch.cat((middle, torch.tensor([torch.inf])))[below]
        return below.to(torch.uint8).to(device), after.to(device)
