# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Floating point to NF4, as a Triton kernel.

Equation and dtypes as in `nf4_quantize.py`, its reference, with the same bits: quotient and product are rounded on
their own. N * K is a multiple of 64 here, so every block is whole.
Memory traffic: one value in, half a byte and 1 / 16 byte out per weight: 2.56 bytes of a bf16 weight. That is less than
the 2 bytes that come over PCIe for each, by the ratio of the two bandwidths (30 or more), so nothing here is made for
speed: the 15 midpoints are compared one after the other. An H100 quantizes at 30 % of the rate of a copy.

One program quantizes `_BLOCKS` blocks of 64 neighbouring values; a block's bits depend on that block alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv
from fam_engine.kernels.nf4_dequantize import BLOCK_SIZE
from fam_engine.kernels.nf4_quantize import SMALLEST, midpoints

# 2048 values a program, 16 a thread.
_BLOCKS: Final = 32


@triton.jit(do_not_specialize=["num_blocks"])
def _quantize(
    weight, packed, absmax, middle,
    num_blocks,
    SMALLEST: tl.constexpr, SIZE: tl.constexpr, BLOCKS: tl.constexpr, MIDDLES: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < num_blocks
    place = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    value = tl.load(weight + place, mask=inside[:, None], other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(value), axis=1)
    # To some versions of Triton a plain number below fp32's normal ones is a double.
    smallest = tl.full([], SMALLEST, tl.float32)
    scaled = value * tl.div_rn(1.0, tl.maximum(largest, smallest))[:, None]

    index = tl.zeros((BLOCKS, SIZE), tl.int32)
    for number in tl.static_range(MIDDLES):
        index += (scaled > tl.load(middle + number)).to(tl.int32)
    high, low = tl.split(tl.reshape(index, (BLOCKS, SIZE // 2, 2)))

    byte = block[:, None] * (SIZE // 2) + tl.arange(0, SIZE // 2)[None, :]
    tl.store(packed + byte, (high << 4 | low).to(tl.uint8), mask=inside[:, None])
    tl.store(absmax + block, largest, mask=inside)


def nf4_quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize one matrix.

    Args:
        weight: [N, K] in bf16, fp16 or fp32, contiguous, finite; N * K a multiple of 64.

    Returns:
        uint8[N * K / 2] and float32[N * K / 64].
    """
    assert weight.is_contiguous()
    num_blocks, rest = divmod(weight.numel(), BLOCK_SIZE)
    assert not rest
    packed = weight.new_empty(num_blocks * BLOCK_SIZE // 2, dtype=torch.uint8)
    absmax = weight.new_empty(num_blocks, dtype=torch.float32)
    middle = _middle(weight.device)
    grid = (cdiv(num_blocks, _BLOCKS),)
    _quantize[grid](weight, packed, absmax, middle, num_blocks, **_launch().keywords)
    return packed, absmax


@lru_cache(maxsize=8)
def _middle(device: torch.device) -> torch.Tensor:
    return midpoints().to(device)


def _launch() -> Launch:
    constants = {"SMALLEST": SMALLEST, "SIZE": BLOCK_SIZE, "BLOCKS": _BLOCKS, "MIDDLES": 15}
    return Launch(constants, enable_fp_fusion=False)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        yield Variant(
            name=f"nf4_quantize {name}",
            kernel=_quantize,
            arguments={
                "weight": POINTER[dtype],
                "packed": POINTER[torch.uint8],
                "absmax": POINTER[torch.float32],
                "middle": POINTER[torch.float32],
                "num_blocks": "i32",
            },
            launch=_launch(),
            values=_BLOCKS * BLOCK_SIZE,
        )
