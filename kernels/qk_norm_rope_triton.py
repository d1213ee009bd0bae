# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Queries and keys made ready for attention: normed head by head, turned, as Triton kernels.

Equations, dimensions, dtypes, rounding and memory traffic as in `qk_norm_rope.py`, their reference.

One program takes several heads of one token, as two tiles: the first halves of the heads and the
second, so that a turn needs no exchange between threads. Tables and norm weights are loaded for every
head of the tile: they come from the L1 cache, and as one row they would have another layout and reach
the tile through shared memory, with 3 barriers, with norms 7. The tile is set by the width of heads
alone, so a head's bits depend on that head and its row of the tables, and not on which other heads, if
any, it is given with. Numbers of heads are no constants: one kernel serves queries, keys and both.

Products and sums are rounded one by one (`enable_fp_fusion` off): without norms, results have the bits
of the CPU's. With them the sum of squares runs in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, await_previous, cdiv
from fam_engine.kernels.qk_norm_rope import HeadNorms
from fam_engine.kernels.rmsnorm_triton import num_warps

# Values a program at least.
_TILE = 1024
# Widths of heads: Qwen2.5-0.5B and Llama-3.2 1B; Llama-3.2 3B, Llama-3.1 8B. With norms: Qwen3.
_SHIPPED = (64, 128)
_SHIPPED_NORMS = (128,)


@triton.jit
def _weights(q_norm, k_norm, head, column, inside, num_queries):
    """Give the norm weights of each head, [heads, half], in fp32."""
    places = tl.broadcast_to(column, inside.shape)
    query = tl.load(q_norm + places, mask=inside, other=0.0)
    key = tl.load(k_norm + places, mask=inside, other=0.0)
    return tl.where(head < num_queries, query, key).to(tl.float32)


@triton.jit
def _inverse_rms(a, b, eps, HALF: tl.constexpr):
    """Give 1 / rms of each head from its halves."""
    square = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
    return tl.rsqrt(square / (2 * HALF) + eps)[:, None]


@triton.jit(do_not_specialize=["num_heads", "num_queries"])
def _qk_norm_rope(
    x, cos, sin, q_norm, k_norm, out,
    x_token_stride, x_head_stride, out_token_stride, out_head_stride,
    num_heads, num_queries, eps,
    HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    await_previous()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_HALF)[None]
    inside = (head < num_heads) & (column < HALF)
    places = x + token * x_token_stride + head * x_head_stride + column
    a = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(places + HALF, mask=inside, other=0.0).to(tl.float32)
    if q_norm is not None:
        scale = _inverse_rms(a, b, eps, HALF)
        a = a * scale * _weights(q_norm, k_norm, head, column, inside, num_queries)
        b = b * scale * _weights(q_norm + HALF, k_norm + HALF, head, column, inside, num_queries)
        a = a.to(x.dtype.element_ty).to(tl.float32)
        b = b.to(x.dtype.element_ty).to(tl.float32)

    turn = token * HALF + tl.broadcast_to(column, inside.shape)
    c = tl.load(cos + turn, mask=inside, other=0.0)
    s = tl.load(sin + turn, mask=inside, other=0.0)
    places = out + token * out_token_stride + head * out_head_stride + column
    tl.store(places, (a * c - b * s).to(out.dtype.element_ty), mask=inside)
    tl.store(places + HALF, (b * c + a * s).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_heads", "num_queries"])
def _qk_norm_rope_backward(
    grad, x, cos, sin, q_norm, k_norm,
    grad_token_stride, grad_head_stride, x_token_stride, x_head_stride,
    num_heads, num_queries, eps,
    HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    await_previous()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_HALF)[None]
    inside = (head < num_heads) & (column < HALF)
    places = grad + token * grad_token_stride + head * grad_head_stride + column
    grad_a = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    grad_b = tl.load(places + HALF, mask=inside, other=0.0).to(tl.float32)
    turn = token * HALF + tl.broadcast_to(column, inside.shape)
    c = tl.load(cos + turn, mask=inside, other=0.0)
    s = tl.load(sin + turn, mask=inside, other=0.0)
    back_a = grad_a * c + grad_b * s
    back_b = grad_b * c - grad_a * s

    if q_norm is not None:
        before = x + token * x_token_stride + head * x_head_stride + column
        a = tl.load(before, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(before + HALF, mask=inside, other=0.0).to(tl.float32)
        scale = _inverse_rms(a, b, eps, HALF)
        a *= scale
        b *= scale
        back_a *= _weights(q_norm, k_norm, head, column, inside, num_queries)
        back_b *= _weights(q_norm + HALF, k_norm + HALF, head, column, inside, num_queries)
        along = tl.sum(back_a * a, axis=1) + tl.sum(back_b * b, axis=1)
        along = (along / (2 * HALF))[:, None]
        back_a = (back_a - a * along) * scale
        back_b = (back_b - b * along) * scale
    tl.store(places, back_a.to(grad.dtype.element_ty), mask=inside)
    tl.store(places + HALF, back_b.to(grad.dtype.element_ty), mask=inside)


def qk_norm_rope(
    x_TNd: torch.Tensor,
    cos_Td: torch.Tensor,
    sin_Td: torch.Tensor,
    *,
    norms: HeadNorms | None,
    out_TNd: torch.Tensor,
) -> None:
    """Norm each head where the model does, and turn it by its position.

    Args:
        x_TNd: [T, N, d] in bf16, fp16 or fp32, heads contiguous, any distance between tokens and heads.
        cos_Td: float32[T, d / 2], contiguous.
        sin_Td: Like `cos_Td`.
        norms: The norms; None: there are none.
        out_TNd: Like `x_TNd`; may be the very same.
    """
    _check(x_TNd, out_TNd, tables=(cos_Td, sin_Td), norms=norms)
    launch = _launch(x_TNd.shape[2])
    q_norm, k_norm, *numbers = _arguments(norms)
    _qk_norm_rope[_grid(x_TNd, launch)](
        x_TNd, cos_Td, sin_Td, q_norm, k_norm, out_TNd,
        *x_TNd.stride()[:2], *out_TNd.stride()[:2], x_TNd.shape[1], *numbers,
        **launch.keywords,
    )  # fmt: skip


def qk_norm_rope_backward(
    grad_TNd: torch.Tensor,
    x_TNd: torch.Tensor | None,
    cos_Td: torch.Tensor,
    sin_Td: torch.Tensor,
    *,
    norms: HeadNorms | None,
) -> None:
    """Make the gradient of x of that of the result, in place.

    Args:
        grad_TNd: [T, N, d] in bf16, fp16 or fp32, heads contiguous, any distance between tokens and
            heads.
        x_TNd: What the forward pass was given; None without norms.
        cos_Td: float32[T, d / 2], contiguous.
        sin_Td: Like `cos_Td`.
        norms: As in the forward pass.
    """
    assert (x_TNd is None) == (norms is None)
    before = [] if x_TNd is None else [x_TNd]
    _check(grad_TNd, *before, tables=(cos_Td, sin_Td), norms=norms)
    launch = _launch(grad_TNd.shape[2])
    q_norm, k_norm, *numbers = _arguments(norms)
    x_strides = (0, 0) if x_TNd is None else x_TNd.stride()[:2]
    _qk_norm_rope_backward[_grid(grad_TNd, launch)](
        grad_TNd, x_TNd, cos_Td, sin_Td, q_norm, k_norm,
        *grad_TNd.stride()[:2], *x_strides, grad_TNd.shape[1], *numbers,
        **launch.keywords,
    )  # fmt: skip


def _arguments(
    norms: HeadNorms | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, int, float]:
    """Give both weights, the number of query heads, and eps."""
    if norms is None:
        return None, None, 0, 0.0
    return norms.q_norm, norms.k_norm, norms.num_query_heads, norms.eps


def _check(
    *heads: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], norms: HeadNorms | None
) -> None:
    """Make sure that tensors are what the kernels read."""
    num_tokens, _, width = heads[0].shape
    for tensor in heads:
        assert tensor.shape == heads[0].shape
        assert tensor.stride(2) == 1
    for table in tables:
        assert table.shape == (num_tokens, width // 2)
        assert table.dtype == torch.float32
        assert table.is_contiguous()
    for weight in (norms.q_norm, norms.k_norm) if norms else ():
        assert weight.shape == (width,)
        assert weight.is_contiguous()


def _grid(x_TNd: torch.Tensor, launch: Launch) -> tuple[int, int]:
    return x_TNd.shape[0], cdiv(x_TNd.shape[1], launch.constants["BLOCK_HEADS"])


@cache
def _launch(width: int) -> Launch:
    half = triton.next_power_of_2(width // 2)
    heads = max(1, _TILE // (2 * half))
    return Launch(
        {"HALF": width // 2, "BLOCK_HEADS": heads, "BLOCK_HALF": half},
        num_warps=num_warps(2 * half * heads),
        enable_fp_fusion=False,
        is_early=True,
    )


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    norms = ("q_norm", "k_norm")
    for width in _SHIPPED:
        yield _variant(f"qk_norm_rope bf16 {width} without norms", _qk_norm_rope, width, norms)
        yield _variant(
            f"qk_norm_rope_backward bf16 {width} without norms",
            _qk_norm_rope_backward,
            width,
            (*norms, "x"),
        )
    for width in _SHIPPED_NORMS:
        yield _variant(f"qk_norm_rope bf16 {width}", _qk_norm_rope, width)
        yield _variant(f"qk_norm_rope_backward bf16 {width}", _qk_norm_rope_backward, width)


def _variant(
    name: str, kernel: triton.JITFunction, width: int, absent: tuple[str, ...] = ()
) -> Variant:
    launch = _launch(width)
    strides = frozenset(name for name in kernel.arg_names if name.endswith("stride"))
    constants = {**launch.constants, **dict.fromkeys(absent)}
    types = {
        **dict.fromkeys(("cos", "sin"), POINTER[torch.float32]),
        **dict.fromkeys((*strides, "num_heads", "num_queries"), "i32"),
        "eps": "fp32",
    }
    return Variant(
        name=name,
        kernel=kernel,
        arguments={
            name: types.get(name, POINTER[torch.bfloat16])
            for name in kernel.arg_names
            if name not in constants
        },
        launch=replace(launch, constants=constants),
        divisible=strides,
        values=2 * launch.constants["HALF"] * launch.constants["BLOCK_HEADS"],
    )
