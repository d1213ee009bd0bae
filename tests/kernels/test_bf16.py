"""What Triton's interpreter, mended, makes of bf16."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from fam_engine.kernels.launching import INTERPRETED
from tests.kernels import on

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is not used")


@triton.jit
def _round(x, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at).to(tl.bfloat16))


@triton.jit
def _add(x, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at) + tl.load(x + at))


@triton.jit
def _multiply(a, b, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def test_fp32_is_rounded_as_torch_rounds() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    # Each half-way case, and its neighbours on both sides: carries, ties, subnormals, infinities and nan.
    halves = (
        (bits << 16).repeat(4)
        + torch.tensor([0, 0x7FFF, 0x8000, 0x8001]).repeat_interleave(len(bits))
    ).int()
    x = halves.view(torch.float32)
    out = torch.empty(len(x), dtype=torch.bfloat16)
    _round[(1,)](x, out, BLOCK=len(x))
    assert torch.equal(out.nan_to_num(1e9), x.bfloat16().nan_to_num(1e9))
    back = torch.empty(len(out))
    _round[(1,)](out.float(), back, BLOCK=len(x))
    assert torch.equal(back.nan_to_num(1e9), out.float().nan_to_num(1e9))


def test_matrices_are_multiplied_as_numbers() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(16, 16).bfloat16() for _ in range(2))
    out = torch.empty(16, 16)
    _multiply[(1,)](a, b, out, BLOCK=16)
    assert (out.double() - a.double() @ b.double()).abs().max() < 1e-5


def test_arithmetic_is_refused() -> None:
    assert torch.bfloat16 in on.DTYPES
    x = torch.ones(4, dtype=torch.bfloat16)
    with pytest.raises(InterpreterError, match="arithmetic in bf16"):
        _add[(1,)](x, x.clone(), BLOCK=4)
