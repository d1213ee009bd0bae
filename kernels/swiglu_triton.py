# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The gated activation of the MLP, as a Triton kernel.

Equation, dimensions and dtypes as in `swiglu.py`, its reference: arithmetic in fp32, one rounding.
Memory traffic: 2F values in, F out; nothing else.

One program makes `BLOCK` neighbouring values of one row. A row's bits depend on that row alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant

# Values a program: two loads of 16 bytes a thread and operand.
_BLOCK = 2048
# Intermediate sizes of Qwen2.5-0.5B, Llama-3.2 1B and 3B, Llama-3.1 8B, Qwen3 8B.
_SHIPPED = (4864, 8192, 14336, 12288)


@triton.jit
def _swiglu(gate_up, out, gate_up_stride, out_stride, F: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    gate_up += row * gate_up_stride
    gate = tl.load(gate_up + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + F + column, mask=inside, other=0.0).to(tl.float32)
    activated = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * out_stride + column, activated.to(out.dtype.element_ty), mask=inside)


def swiglu(gate_up: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write silu(gate) * up.

    Args:
        gate_up: [T, 2F] in bf16, fp16 or fp32, rows contiguous, any row stride.
        out: [T, F] of the same dtype, rows contiguous, any row stride.
    """
    num_rows, width = out.shape
    assert gate_up.shape == (num_rows, 2 * width)
    assert gate_up.stride(1) == out.stride(1) == 1
    grid = (num_rows, triton.cdiv(width, _BLOCK))
    _swiglu[grid](gate_up, out, gate_up.stride(0), out.stride(0), **_launch(width).keywords)


def _launch(width: int) -> Launch:
    return Launch({"F": width, "BLOCK": _BLOCK})


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    for width in _SHIPPED:
        pointer = POINTER[torch.bfloat16]
        arguments = {
            "gate_up": pointer,
            "out": pointer,
            "gate_up_stride": "i32",
            "out_stride": "i32",
        }
        yield Variant(
            name=f"swiglu bf16 {width}",
            kernel=_swiglu,
            arguments=arguments,
            launch=_launch(width),
            divisible=frozenset({"gate_up_stride", "out_stride"}),
            values=_BLOCK,
        )
