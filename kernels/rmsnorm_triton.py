# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Root-mean-square norm over the last dimension, as a Triton kernel.

Equation, dimensions and dtypes as in `rmsnorm.py`, its reference: arithmetic in fp32, one rounding.
Memory traffic: x read once, out written once; a row waits in registers for its mean.

One program norms one row, or as many narrow ones as make 1024 values (heads of queries and keys).
16 values a thread: two loads of 16 bytes in bf16. Rows never mix, and each is summed in the same order
wherever it lies. (Strides and addresses of no multiple of 16 compile to another order; a model has one
or the other.) Rejected: several wide rows a program, one after the other, with the weight in registers;
it would save reads of the weight that the L2 cache serves: on an H100 a norm is as fast as a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, await_previous, cdiv

# Values a program at least, and a thread.
_TILE = 1024
_VALUES_PER_THREAD = 16
# Heads and width: the residual stream of Qwen2.5-0.5B, Llama-3.2 1B and 3B, Llama-3.1 8B and
# Qwen3 8B; the heads of Qwen3 8B's queries.
_SHIPPED = ((1, 896), (1, 2048), (1, 3072), (1, 4096), (32, 128))


@triton.jit(do_not_specialize=["num_rows"])
def _rmsnorm(
    x, weight, out, num_rows, token_stride, head_stride, eps,
    HEADS: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    await_previous()
    # Row r is head r % HEADS of token r // HEADS.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None]
    inside = (row < num_rows) & (column < D)
    start = (row // HEADS).to(tl.int64) * token_stride + (row % HEADS) * head_stride
    values = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / D + eps)

    # Loaded for every row: as one row they would reach the others through shared memory.
    weights = tl.load(weight + tl.broadcast_to(column, inside.shape), mask=inside, other=0.0)
    normed = values * scale[:, None] * weights.to(tl.float32)
    place = row.to(tl.int64) * D + column
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """Norm each row of x.

    Args:
        x: [rows, D] or [rows, heads, D] in bf16, fp16 or fp32; the last dimension contiguous.
        weight: [D].
        eps: Added to the mean square.

    Returns:
        Contiguous, of x's shape and dtype.
    """
    rows = x if x.dim() == 3 else x[:, None]
    num_tokens, heads, width = rows.shape
    assert weight.shape == (width,)
    assert x.stride(-1) == weight.stride(0) == 1
    launch = _launch(heads, width)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (cdiv(num_tokens * heads, launch.constants["ROWS"]),)
    _rmsnorm[grid](
        x, weight, out, num_tokens * heads, rows.stride(0), rows.stride(1), eps, **launch.keywords
    )
    return out


def num_warps(block: int) -> int:
    """Give the warps of a program that holds `block` values."""
    return min(16, max(1, block // (32 * _VALUES_PER_THREAD)))


@cache
def _launch(heads: int, width: int) -> Launch:
    block = triton.next_power_of_2(width)
    rows = max(1, _TILE // block)
    return Launch(
        {"HEADS": heads, "D": width, "ROWS": rows, "BLOCK": block},
        num_warps=num_warps(rows * block),
        is_early=True,
    )


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    for heads, width in _SHIPPED:
        pointer = POINTER[torch.bfloat16]
        arguments = {
            "x": pointer,
            "weight": pointer,
            "out": pointer,
            "num_rows": "i32",
            "token_stride": "i32",
            "head_stride": "i32",
            "eps": "fp32",
        }
        launch = _launch(heads, width)
        yield Variant(
            name=f"rmsnorm bf16 {heads}x{width}",
            kernel=_rmsnorm,
            arguments=arguments,
            launch=launch,
            divisible=frozenset({"token_stride", "head_stride"}),
            values=launch.constants["ROWS"] * width,
        )
