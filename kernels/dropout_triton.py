# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Dropout whose mask follows from a seed and the element's place, as a Triton kernel.

Equation, dimensions and dtypes as in `dropout.py`, its reference, whose bits it makes.
Memory traffic: K values in, K out; no mask.

One program makes `BLOCK` neighbouring values of one row; a thread makes the bits of 16 at a time and uses all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl

from fam_engine.kernels.dropout import BLOCK_VALUES, LEVELS, num_dropped
from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv

# 16 values a thread, which are one block of Philox.
_BLOCK = 2048
# Inputs of matrices with adapters (hidden and intermediate sizes) of Llama-3.2 1B and 3B, Llama-3.1 8B.
_SHIPPED = (2048, 3072, 4096, 8192, 14336)


@triton.jit
def _words(b0, b1, b2, b3, NUM: tl.constexpr):
    """Give 4 x uint64[NUM] as the 16-bit words of each block in order, lowest first: [16 * NUM]."""
    quads = tl.join(tl.join(b0, b2), tl.join(b1, b3)).reshape(4 * NUM, 1)
    shifts = (16 * tl.arange(0, 4)).to(tl.uint64)
    return ((quads >> shifts[None, :]) & 0xFFFF).to(tl.uint32).reshape(16 * NUM)


@triton.jit(do_not_specialize=["stream_0", "stream_1", "stream_2"])
def _dropout(
    x,
    seed,
    out,
    stream_0,
    stream_1,
    stream_2,
    x_stride,
    out_stride,
    K: tl.constexpr,
    NUM_DROPPED: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    NUM: tl.constexpr = BLOCK // 16
    counter = 1 + row * ((K + 15) // 16) + tl.program_id(1) * NUM + tl.arange(0, NUM)
    b0, b1, b2, b3 = tl.philox(
        tl.load(seed),
        counter,
        tl.zeros_like(counter) + stream_0,
        tl.zeros_like(counter) + stream_1,
        tl.zeros_like(counter) + stream_2,
    )
    keep = _words(b0, b1, b2, b3, NUM) >= NUM_DROPPED

    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < K
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    # A product with 0, as torch's: what is not finite stays seen.
    value = value * keep.to(tl.float32) * SCALE
    tl.store(out + row * out_stride + column, value.to(out.dtype.element_ty), mask=inside)


def dropout(
    x_TK: torch.Tensor,
    *,
    rate: float,
    seed: torch.Tensor,
    stream: tuple[int, int, int],
    out: torch.Tensor,
) -> None:
    """Leave values out and scale up the rest.

    Args:
        x_TK: [T, K] in bf16, fp16 or fp32, rows contiguous, any row stride.
        rate: Probability of leaving a value out, in [0, 1); rounded to a multiple of 2^-16.
        seed: int64[1] on the device of x, not negative.
        stream: What else the mask follows from, such as layer, matrix and source; each below 2^31.
        out: [T, K] of the same dtype, rows contiguous, any row stride; may be x.
    """
    num_rows, width = x_TK.shape
    assert out.shape == x_TK.shape
    assert x_TK.stride(1) == out.stride(1) == 1
    grid = (num_rows, cdiv(width, _BLOCK))
    _dropout[grid](
        x_TK, seed, out, *stream, x_TK.stride(0), out.stride(0), **_launch(width, rate).keywords
    )


@cache
def _launch(width: int, rate: float) -> Launch:
    dropped = num_dropped(rate)
    constants = {
        "K": width,
        "NUM_DROPPED": dropped,
        "SCALE": LEVELS / (LEVELS - dropped),
        "BLOCK": _BLOCK,
    }
    return Launch(constants, num_warps=_BLOCK // BLOCK_VALUES // 32)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    for width in _SHIPPED:
        pointer = POINTER[torch.bfloat16]
        arguments = {"x": pointer, "seed": POINTER[torch.int64], "out": pointer}
        arguments |= {f"stream_{i}": "i32" for i in range(3)}
        arguments |= {"x_stride": "i32", "out_stride": "i32"}
        yield Variant(
            name=f"dropout bf16 {width}",
            kernel=_dropout,
            arguments=arguments,
            launch=_launch(width, 0.05),
            divisible=frozenset({"x_stride", "out_stride"}),
            values=_BLOCK,
        )
