# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The gated activation of the MLP and its gradient, as Triton kernels.

Equations, dimensions and dtypes as in `swiglu.py`, their reference: arithmetic in fp32, one rounding.
Memory traffic: forward 2F values in, F out; backward 3F in, 3F out; nothing else.

One program makes `BLOCK` neighbouring values of one row. A row's bits depend on that row alone. The
backward pass makes the activation again by the same operations, so with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, await_previous, cdiv

# Values a program: two loads of 16 bytes a thread and operand.
_BLOCK = 2048
# Intermediate sizes of Qwen2.5-0.5B, Llama-3.2 1B and 3B, Llama-3.1 8B, Qwen3 8B.
_SHIPPED = (4864, 8192, 14336, 12288)


@triton.jit
def _swiglu(gate_up, out, gate_up_stride, out_stride, F: tl.constexpr, BLOCK: tl.constexpr):
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    gate_up += row * gate_up_stride
    gate = tl.load(gate_up + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + F + column, mask=inside, other=0.0).to(tl.float32)
    activated = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * out_stride + column, activated.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(
    grad, gate_up, out,
    grad_stride, gate_up_stride, out_stride,
    F: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    gate_place = gate_up + row * gate_up_stride + column
    gate = tl.load(gate_place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_place + F, mask=inside, other=0.0).to(tl.float32)
    upper = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
    denominator = 1 + tl.exp(-gate)
    sigmoid = 1 / denominator
    silu = gate / denominator
    slope = sigmoid + silu * (1 - sigmoid)

    dtype = gate_up.dtype.element_ty
    tl.store(gate_place, (upper * up * slope).to(dtype), mask=inside)
    tl.store(gate_place + F, (upper * silu).to(dtype), mask=inside)
    tl.store(out + row * out_stride + column, (silu * up).to(dtype), mask=inside)


def swiglu(gate_up: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write silu(gate) * up.

    Args:
        gate_up: [T, 2F] in bf16, fp16 or fp32, rows contiguous, any row stride.
        out: [T, F] of the same dtype, rows contiguous, any row stride.
    """
    num_rows, width = out.shape
    assert gate_up.shape == (num_rows, 2 * width)
    assert gate_up.stride(1) == out.stride(1) == 1
    grid = (num_rows, cdiv(width, _BLOCK))
    _swiglu[grid](gate_up, out, gate_up.stride(0), out.stride(0), **_launch(width).keywords)


def swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write the gradients of gate and up in their place, and silu(gate) * up.

    Args:
        grad: Gradient of silu(gate) * up, [T, F] in bf16, fp16 or fp32, rows contiguous, any row
            stride.
        gate_up: [T, 2F] of the same dtype, rows contiguous, any row stride: gate and up on entry, on
            return their gradients.
        out: [T, F] of the same dtype, rows contiguous, any row stride, what `swiglu` writes; may be
            `grad` itself.
    """
    num_rows, width = grad.shape
    assert gate_up.shape == (num_rows, 2 * width)
    assert out.shape == grad.shape
    assert grad.stride(1) == gate_up.stride(1) == out.stride(1) == 1
    grid = (num_rows, cdiv(width, _BLOCK))
    strides = (grad.stride(0), gate_up.stride(0), out.stride(0))
    _swiglu_backward[grid](grad, gate_up, out, *strides, **_launch(width).keywords)


@cache
def _launch(width: int) -> Launch:
    return Launch({"F": width, "BLOCK": _BLOCK}, is_early=True)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    for width in _SHIPPED:
        for kernel, name in ((_swiglu, "swiglu"), (_swiglu_backward, "swiglu_backward")):
            strides = frozenset(name for name in kernel.arg_names if name.endswith("stride"))
            launch = _launch(width)
            yield Variant(
                name=f"{name} bf16 {width}",
                kernel=kernel,
                arguments={
                    name: "i32" if name in strides else POINTER[torch.bfloat16]
                    for name in kernel.arg_names
                    if name not in launch.constants
                },
                launch=launch,
                divisible=strides,
                values=_BLOCK,
            )
