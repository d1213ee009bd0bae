# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The residual stream: add to it and norm the sum, and its gradient, as Triton kernels.

Equations, dimensions, dtypes and memory traffic as in `add_rmsnorm.py`, their reference.

One program takes one row, whole, so that the sum, the norm and both of the gradient's means need
it read once. A row's bits depend on that row alone.

Rejected: making rstd again in the backward pass. The row lies in registers there, so it is one sum
more; but keeping 4 bytes a token is nothing beside its 2D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, await_previous
from fam_engine.kernels.rmsnorm_triton import num_warps

# Hidden sizes of Qwen2.5-0.5B, Llama-3.2 1B and 3B, Llama-3.1 8B and Qwen3 8B.
_SHIPPED = (896, 2048, 3072, 4096)


@triton.jit
def _add_rmsnorm(
    residual, delta, weight, out, rstd,
    residual_stride, delta_stride, out_stride, eps,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    places = residual + row * residual_stride + column
    x = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    if delta is not None:
        x += tl.load(delta + row * delta_stride + column, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(residual.dtype.element_ty)
        tl.store(places, rounded, mask=inside)
        x = rounded.to(tl.float32)

    scale = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
    if rstd is not None:
        tl.store(rstd + row, scale)
    weights = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    normed = x * scale * weights
    tl.store(out + row * out_stride + column, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_rmsnorm_backward(
    grad_out, residual, weight, rstd, grad_residual,
    grad_out_stride, residual_stride, grad_residual_stride,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    grad = tl.load(grad_out + row * grad_out_stride + column, mask=inside, other=0.0)
    weights = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(rstd + row)
    grad = grad.to(tl.float32) * weights
    normed = x * scale
    along = tl.sum(grad * normed, axis=0) / D

    places = grad_residual + row * grad_residual_stride + column
    above = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    total = (grad - normed * along) * scale + above
    tl.store(places, total.to(grad_residual.dtype.element_ty), mask=inside)


def add_rmsnorm(
    residual: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    eps: float,
    out: torch.Tensor,
    rstd: torch.Tensor | None = None,
) -> None:
    """Add delta to residual, in place, and write the norm of the sum.

    A sum does not mind the order: who still needs the old residual gives delta as `residual` and
    the residual as `delta`, and finds the sum where delta was.

    Args:
        residual: [T, D] in bf16, fp16 or fp32, rows contiguous, any row stride.
        delta: Like `residual`; None: nothing to add, residual is only normed.
        weight: [D].
        eps: Added to the mean square.
        out: [T, D], rows contiguous, any row stride.
        rstd: float32[T], where 1 / sqrt(mean square + eps) is written.
    """
    num_rows, width = residual.shape
    _check(residual, out, *([] if delta is None else [delta]), weight=weight, rstd=rstd)
    delta_stride = 0 if delta is None else delta.stride(0)
    strides = (residual.stride(0), delta_stride, out.stride(0))
    _add_rmsnorm[(num_rows,)](
        residual, delta, weight, out, rstd, *strides, eps, **_launch(width).keywords
    )


def add_rmsnorm_backward(
    grad_out: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    *,
    grad_residual: torch.Tensor,
) -> None:
    """Add the norm's gradient to that of the sum, in place.

    Args:
        grad_out: Gradient of `out`, [T, D] in bf16, fp16 or fp32, not always residual's; rows contiguous, any row
            stride.
        residual: The sum that was normed, [T, D], rows contiguous, any row stride.
        weight: [D].
        rstd: float32[T], as `add_rmsnorm` wrote it.
        grad_residual: [T, D] in bf16, fp16 or fp32, rows contiguous, any row stride: on entry the
            gradient of the sum by all that follows but the norm, on return that of the old
            residual, and of delta.
    """
    num_rows, width = residual.shape
    _check(residual, grad_out, grad_residual, weight=weight, rstd=rstd)
    strides = (grad_out.stride(0), residual.stride(0), grad_residual.stride(0))
    _add_rmsnorm_backward[(num_rows,)](
        grad_out, residual, weight, rstd, grad_residual, *strides, **_launch(width).keywords
    )


def _check(*rows: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor | None) -> None:
    """Make sure that tensors are what the kernels read."""
    num_rows, width = rows[0].shape
    for tensor in rows:
        assert tensor.shape == (num_rows, width)
        assert tensor.stride(1) == 1
    assert weight.shape == (width,)
    assert weight.stride(0) == 1
    if rstd is not None:
        assert rstd.shape == (num_rows,)
        assert rstd.dtype == torch.float32
        assert rstd.is_contiguous()


@cache
def _launch(width: int) -> Launch:
    block = triton.next_power_of_2(width)
    return Launch({"D": width, "BLOCK": block}, num_warps=num_warps(block), is_early=True)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    for width in _SHIPPED:
        yield _variant(f"add_rmsnorm bf16 {width}", _add_rmsnorm, width)
        yield _variant(f"add_rmsnorm_backward bf16 {width}", _add_rmsnorm_backward, width)
    # Less of the same: one width says that it compiles.
    for absent in ("rstd", "delta"):
        name = f"add_rmsnorm bf16 {_SHIPPED[-1]} without {absent}"
        yield _variant(name, _add_rmsnorm, _SHIPPED[-1], without=absent)


def _variant(
    name: str, kernel: triton.JITFunction, width: int, *, without: str | None = None
) -> Variant:
    launch = _launch(width)
    absent = {without: None} if without else {}
    strides = frozenset(name for name in kernel.arg_names if name.endswith("stride"))
    types = {"rstd": POINTER[torch.float32], "eps": "fp32", **dict.fromkeys(strides, "i32")}
    arguments = {
        name: types.get(name, POINTER[torch.bfloat16])
        for name in kernel.arg_names
        if name not in launch.constants and name not in absent
    }
    return Variant(
        name=name,
        kernel=kernel,
        arguments=arguments,
        launch=replace(launch, constants={**launch.constants, **absent}),
        divisible=strides,
        values=width,
    )
