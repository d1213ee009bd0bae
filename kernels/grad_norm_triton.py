# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The L2 norm of all gradients, and what clipping multiplies them by, as two Triton kernels.

Equations, dimensions and dtypes as in `grad_norm.py`, its reference; here a sum of `BLOCK * STEPS` squares is made in
fp32, sums of sums in fp64. A square above 3e38 makes the norm infinite.
Memory traffic: 4 bytes a value in; the sums are 4 bytes for each 2^15 values.

Two stages: each program of the first writes the sum of its own squares, one program of the second adds those in their
order. No atomics: the same gradients give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fam_engine.kernels.flat_adamw_triton import ADAPTER_SIZES
from fam_engine.kernels.grad_norm import EPS
from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv

# Four loads of 16 bytes a thread at a time; 2^15 values a program.
_BLOCK, _STEPS = 2048, 16
# Sums the second stage adds at a time.
_SUMS = 1024


@triton.jit
def _sums_of_squares(grads, sums, P: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    squares = tl.zeros([BLOCK], tl.float32)
    for step in range(STEPS):
        place = first + step * BLOCK + tl.arange(0, BLOCK)
        grad = tl.load(grads + place, mask=place < P, other=0.0)
        squares += grad * grad
    tl.store(sums + tl.program_id(0), tl.sum(squares, 0))


@triton.jit
def _norm_and_factor(
    sums, out, MAX_NORM: tl.constexpr, EPS: tl.constexpr, NUM: tl.constexpr, BLOCK: tl.constexpr
):
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, NUM, BLOCK):
        place = first + tl.arange(0, BLOCK)
        total += tl.load(sums + place, mask=place < NUM, other=0.0).to(tl.float64)
    norm = tl.sqrt(tl.sum(total, 0))
    factor = MAX_NORM / (norm + EPS)
    factor = tl.where(factor > 1, 1.0, factor)  # a minimum would lose what is not a number
    tl.store(out, norm.to(tl.float32))
    tl.store(out + 1, factor.to(tl.float32))


def grad_norm(grads_P: torch.Tensor, *, max_norm: float) -> torch.Tensor:
    """Compute norm and clipping factor.

    Args:
        grads_P: fp32[P], contiguous.
        max_norm: Above which gradients are scaled down.

    Returns:
        fp32[2] on the device of the gradients: norm, factor. [1:] is the `clip` of `flat_adamw`.
    """
    assert grads_P.dtype == torch.float32
    assert grads_P.is_contiguous()
    first, second = _launches(grads_P.numel(), max_norm)
    num_sums = second.constants["NUM"]
    sums, out = grads_P.new_empty(num_sums), grads_P.new_empty(2)
    _sums_of_squares[(num_sums,)](grads_P, sums, **first.keywords)
    _norm_and_factor[(1,)](sums, out, **second.keywords)
    return out


def _launches(size: int, max_norm: float) -> tuple[Launch, Launch]:
    num_sums = cdiv(size, _BLOCK * _STEPS)
    constants = {"MAX_NORM": max_norm, "EPS": EPS, "NUM": num_sums, "BLOCK": _SUMS}
    return Launch({"P": size, "BLOCK": _BLOCK, "STEPS": _STEPS}), Launch(constants)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    fp32 = POINTER[torch.float32]
    for name, size in ADAPTER_SIZES.items():
        first, second = _launches(size, 1.0)
        yield Variant(
            name=f"grad_norm squares fp32 {name}",
            kernel=_sums_of_squares,
            arguments={"grads": fp32, "sums": fp32},
            launch=first,
        )
        yield Variant(
            name=f"grad_norm factor fp32 {name}",
            kernel=_norm_and_factor,
            arguments={"sums": fp32, "out": fp32},
            launch=second,
        )
