# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Gradients of a LoRA adapter's small matrices from one reading of the output's gradient, as Triton kernels.

Equations, dimensions and dtypes as in `lora_backward.py`, its reference.

dS is a sum over columns and dB one over rows: a program that reads a piece of dY once can finish neither. Here a
program owns `BN` columns and `SPLIT` rows; it keeps its dB in registers over its rows and writes its share of dS after
every `BT` of them. A second kernel adds the shares in their order, scales and rounds. There are no atomics (LoRAFusion,
whose split point this is, adds dB by atomics in fp32): the same tensors give the same bits. A row of dS has the same
bits whatever rows are beside it. Which sums make dB follows from T, N, r and dtype and not from the size of the GPU:
rows are taken 4096 at a time, of those each `SPLIT` are one share.

Memory traffic for a value of dY in 16 bits: 2 bytes, and 8 r (1 / BN + 1 / SPLIT) bytes of shares, written and read:
1 at r = 16 (0.75 where N is 8192 or more), 3 at r = 64. Two products of cuBLAS read dY twice: 4 bytes. What decides is
how many of the shares stay in the L2 cache; they take 4 * 4096 * N * r (1 / BN + 1 / SPLIT) bytes, at the gate of 8B
22 MB at r = 16 and 88 MB at r = 64. On an H100 16,384 rows of N = 4096 at r = 16 take 0.132 ms, 34 % of the rate of a
copy, and all of an 8B step's 4.5 % of it; two products were not timed beside it. Rank 64 is where they may win. Above
it they are what runs here: each then does r operations a byte or more, and shares would outgrow dY.

Rejected: dB's shares streamed and dS kept in registers (the same traffic, rows and columns exchanged); one program for
all columns of some rows (few programs, and dB's shares as large as dY at 128 rows and r = 32); blocks of 512 columns at
rank 64 (176 to 216 bytes spilled on sm_90, 110,592 bytes of shared memory of 101,376 on sm_86, 89 and 120).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, capability_of, cdiv
from fam_engine.kernels.mm_fp32 import mm_fp32

# The largest rank that is worth it, see above.
_MAX_RANK = 64
# Rows whose shares exist at a time.
_CHUNK = 4096
# Rows that the second kernel's programs add.
_ADDED_ROWS = 32
# Output features of sources of Llama-3.1 8B and Llama-3.2: k, v; q, o, down; gate, up. Those of 512, 2048 and 3072 are
# compiled to the same registers as 1024 and 4096.
_SHIPPED = (1024, 4096, 8192, 14336)


@triton.jit(do_not_specialize=["num_rows"])
def _make_shares(
    grad,
    inner,
    lora_B,
    inner_shares,
    B_shares,
    num_rows,
    grad_stride,
    inner_stride,
    N: tl.constexpr,
    R: tl.constexpr,
    RANK: tl.constexpr,
    BN: tl.constexpr,
    BT: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Write this program's share of dS, [N / BN, T, R], and of dB, [T / SPLIT, N, R], unscaled."""
    block, first_row = tl.program_id(0), tl.program_id(1) * SPLIT
    column = block * BN + tl.arange(0, BN)
    rank = tl.arange(0, RANK)
    B_mask = (column < N)[:, None] & (rank < R)[None, :]
    B_place = column[:, None] * R + rank[None, :]
    B = tl.load(lora_B + B_place, mask=B_mask, other=0.0)
    grad_B = tl.zeros([BN, RANK], tl.float32)

    # Of unknown length: a loop of 8 steps would be unrolled to 4 times the code.
    for first in range(first_row, tl.minimum(first_row + SPLIT, num_rows), BT):
        row = first + tl.arange(0, BT)
        is_row = row < num_rows
        row = row.to(tl.int64)
        dY = tl.load(
            grad + row[:, None] * grad_stride + column[None, :],
            mask=is_row[:, None] & (column < N)[None, :],
            other=0.0,
        )
        S_mask = is_row[:, None] & (rank < R)[None, :]
        S = tl.load(inner + row[:, None] * inner_stride + rank[None, :], mask=S_mask, other=0.0)
        grad_B = tl.dot(tl.trans(dY), S, grad_B, input_precision="ieee")
        grad_S = tl.dot(dY, B, input_precision="ieee")
        S_place = (block.to(tl.int64) * num_rows + row)[:, None] * R + rank[None, :]
        tl.store(inner_shares + S_place, grad_S, mask=S_mask)

    B_shares += tl.program_id(1).to(tl.int64) * (N * R)
    tl.store(B_shares + B_place, grad_B, mask=B_mask)


@triton.jit(do_not_specialize=["num_shares", "num_rows"])
def _add_shares(
    shares,
    out,
    scaling,
    num_shares,
    num_rows,
    out_stride,
    R: tl.constexpr,
    RANK: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add fp32[num_shares, num_rows, R] over the first dimension, in order; scale, and write or add."""
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    rank = tl.arange(0, RANK)
    mask = (row < num_rows)[:, None] & (rank < R)[None, :]
    total = tl.zeros([BLOCK, RANK], tl.float32)
    place = row[:, None] * R + rank[None, :]
    for _ in range(num_shares):
        total += tl.load(shares + place, mask=mask, other=0.0)
        place += num_rows * R
    total *= scaling
    out += row[:, None] * out_stride + rank[None, :]
    if ADD:
        total += tl.load(out, mask=mask, other=0.0)
    tl.store(out, total.to(out.dtype.element_ty), mask=mask)


def lora_backward(
    grad_TN: torch.Tensor,
    inner_TR: torch.Tensor,
    lora_B_NR: torch.Tensor,
    *,
    scaling: float,
    grad_inner_TR: torch.Tensor,
    grad_B_NR: torch.Tensor,
) -> None:
    """Write the gradient of S and add to that of B.

    Args:
        grad_TN: [T, N] in bf16, fp16 or fp32, gradient of the source's output; rows contiguous, any row stride.
        inner_TR: [T, r] of the same dtype, S; rows contiguous, any row stride.
        lora_B_NR: [N, r] of the same dtype, contiguous, unscaled.
        scaling: alpha / r, or alpha / sqrt(r).
        grad_inner_TR: [T, r] of the same dtype, written; rows contiguous, any row stride; no part of `grad_TN` or
            `inner_TR`. Columns beyond r, which a buffer may have for alignment, are left as they are.
        grad_B_NR: fp32[N, r], contiguous, added to.
    """
    (num_rows, width), rank = grad_TN.shape, lora_B_NR.shape[1]
    assert inner_TR.shape == grad_inner_TR.shape == (num_rows, rank)
    assert lora_B_NR.shape == grad_B_NR.shape == (width, rank)
    assert grad_TN.stride(1) == inner_TR.stride(1) == grad_inner_TR.stride(1) == 1
    assert lora_B_NR.is_contiguous()
    assert grad_B_NR.is_contiguous()
    given = (scaling, grad_inner_TR, grad_B_NR)
    if rank > _MAX_RANK:
        _by_products(grad_TN, inner_TR, lora_B_NR, *given)
    else:
        _by_shares(grad_TN, inner_TR, lora_B_NR, *given)


def _by_products(
    grad_TN: torch.Tensor,
    inner_TR: torch.Tensor,
    lora_B_NR: torch.Tensor,
    scaling: float,
    grad_inner_TR: torch.Tensor,
    grad_B_NR: torch.Tensor,
) -> None:
    grad_inner = torch.empty(grad_inner_TR.shape, dtype=torch.float32, device=grad_TN.device)
    mm_fp32(grad_TN, lora_B_NR, out=grad_inner)
    grad_inner_TR.copy_(grad_inner.mul_(scaling))
    grad_B = torch.empty_like(grad_B_NR)
    mm_fp32(grad_TN.t(), inner_TR, out=grad_B)
    grad_B_NR.add_(grad_B, alpha=scaling)


def _by_shares(
    grad_TN: torch.Tensor,
    inner_TR: torch.Tensor,
    lora_B_NR: torch.Tensor,
    scaling: float,
    grad_inner_TR: torch.Tensor,
    grad_B_NR: torch.Tensor,
) -> None:
    width, rank = lora_B_NR.shape
    making = _making(width, rank, grad_TN.dtype, capability_of(grad_TN.device))
    num_blocks = cdiv(width, making.constants["BN"])
    size = min(_CHUNK, grad_TN.shape[0])
    num_splits = cdiv(size, making.constants["SPLIT"])
    inner_shares = grad_B_NR.new_empty(num_blocks * size * rank)
    B_shares = grad_B_NR.new_empty(num_splits * width * rank)
    for first in range(0, grad_TN.shape[0], _CHUNK):
        chunk = slice(first, first + _CHUNK)
        grad, inner, grad_inner = grad_TN[chunk], inner_TR[chunk], grad_inner_TR[chunk]
        num_rows = len(grad)
        num_splits = cdiv(num_rows, making.constants["SPLIT"])
        strides = (grad.stride(0), inner.stride(0))
        _make_shares[(num_blocks, num_splits)](
            grad, inner, lora_B_NR, inner_shares, B_shares, num_rows, *strides, **making.keywords
        )
        _add(inner_shares, grad_inner, scaling, num_blocks, is_added=False)
        _add(B_shares, grad_B_NR, scaling, num_splits, is_added=True)


def _add(
    shares: torch.Tensor, out: torch.Tensor, scaling: float, num_shares: int, *, is_added: bool
) -> None:
    num_rows, rank = out.shape
    grid = (cdiv(num_rows, _ADDED_ROWS),)
    adding = _adding(rank, is_added=is_added)
    _add_shares[grid](shares, out, scaling, num_shares, num_rows, out.stride(0), **adding.keywords)


def _padded(rank: int) -> int:
    return 1 << max(4, (rank - 1).bit_length())


@cache
def _making(width: int, rank: int, dtype: torch.dtype, capability: int) -> Launch:
    padded = _padded(rank)
    # Large matrices have programs enough for blocks that write fewer shares; at rank 64 B would fill shared memory.
    columns = 512 if width >= 8192 and padded <= 32 else 256
    columns = columns * 2 // dtype.itemsize
    split = 512 if padded == 64 else 256
    sizes = {"BN": columns, "BT": 32, "SPLIT": split}
    constants = {"N": width, "R": rank, "RANK": padded, **sizes}
    # On 9.0 dB is made by matrix instructions that run on by themselves, dS by others: Triton (3.6, 3.9) then has one
    # buffer too few for dY in stages, and loads into the one that is still read.
    num_stages = 1 if capability == 90 else 3
    return Launch(constants, num_warps=8 if columns * padded > 4096 else 4, num_stages=num_stages)


@cache
def _adding(rank: int, *, is_added: bool) -> Launch:
    constants = {"R": rank, "RANK": _padded(rank), "ADD": is_added, "BLOCK": _ADDED_ROWS}
    return Launch(constants)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    bf16, fp32 = POINTER[torch.bfloat16], POINTER[torch.float32]
    for rank in (16, 64):
        for width in _SHIPPED:
            yield Variant(
                name=f"lora_backward shares bf16 N={width} r={rank}",
                kernel=_make_shares,
                arguments={
                    **dict.fromkeys(("grad", "inner", "lora_B"), bf16),
                    **dict.fromkeys(("inner_shares", "B_shares"), fp32),
                    **dict.fromkeys(("num_rows", "grad_stride", "inner_stride"), "i32"),
                },
                launch=_making(width, rank, torch.bfloat16, capability),
                divisible=frozenset({"grad_stride", "inner_stride"}),
                uses_matrix_units=True,
            )
        for is_added, name, out in ((False, "dS", bf16), (True, "dB", fp32)):
            yield Variant(
                name=f"lora_backward {name} r={rank}",
                kernel=_add_shares,
                arguments={
                    **{"shares": fp32, "out": out, "scaling": "fp32"},
                    **dict.fromkeys(("num_shares", "num_rows", "out_stride"), "i32"),
                },
                launch=_adding(rank, is_added=is_added),
                divisible=frozenset({"out_stride"}),
            )
