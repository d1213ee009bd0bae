# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sums of rows that were taken from the same place, in a fixed order, as a Triton kernel.

Equation, dimensions, dtypes and memory traffic as in `sum_rows.py`, its reference, whose bits it makes.

One program makes `BLOCK` neighbouring values of one place, adding one row after the other: no atomics. Most places
have one row or none; that of a prompt has one a sibling, and its programs take as much longer. Not yet measured on a
GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv

_BLOCK = 1024
# Keys of all heads: Llama-3.2 1B; Llama-3.1 8B and Qwen3 8B. Hidden sizes: Llama-3.2 1B, Llama-3.1 8B.
_SHIPPED = (512, 1024, 2048, 4096)


@triton.jit
def _sum_rows(
    x, places, starts, out, x_stride, out_stride, W: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < W
    total = tl.zeros([BLOCK], tl.float32)
    for number in range(tl.load(starts + place), tl.load(starts + place + 1)):
        row = tl.load(places + number).to(tl.int64)
        total += tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place * out_stride + column, total.to(out.dtype.element_ty), mask=inside)


def sum_rows(
    x_SW: torch.Tensor, places_S: torch.Tensor, starts_T: torch.Tensor, *, out_TW: torch.Tensor
) -> None:
    """Write the sums.

    Args:
        x_SW: [S, W] in bf16, fp16 or fp32, rows contiguous, any row stride.
        places_S: int32[S], rows of x ordered by the place they were taken from.
        starts_T: int32[T + 1]: `places_S[starts_T[t] : starts_T[t + 1]]` were taken from place t.
        out_TW: [T, W] in bf16, fp16 or fp32, rows contiguous, any row stride.
    """
    num_places, width = out_TW.shape
    assert x_SW.shape == (len(places_S), width)
    assert starts_T.shape == (num_places + 1,)
    assert x_SW.stride(1) == out_TW.stride(1) == 1
    grid = (num_places, cdiv(width, _BLOCK))
    _sum_rows[grid](
        x_SW,
        places_S,
        starts_T,
        out_TW,
        x_SW.stride(0),
        out_TW.stride(0),
        **_launch(width).keywords,
    )


@cache
def _launch(width: int) -> Launch:
    return Launch({"W": width, "BLOCK": min(_BLOCK, triton.next_power_of_2(width))})


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    bf16, fp32, int32 = (POINTER[x] for x in (torch.bfloat16, torch.float32, torch.int32))
    for width in _SHIPPED:
        # Keys go back to where they were in bf16, a row's gradients in fp32.
        for name, out in (("bf16", bf16), ("fp32", fp32)):
            yield Variant(
                name=f"sum_rows {name} {width}",
                kernel=_sum_rows,
                arguments={
                    "x": bf16,
                    "places": int32,
                    "starts": int32,
                    "out": out,
                    "x_stride": "i32",
                    "out_stride": "i32",
                },
                launch=_launch(width),
                divisible=frozenset({"x_stride", "out_stride"}),
                values=min(_BLOCK, width),
            )
