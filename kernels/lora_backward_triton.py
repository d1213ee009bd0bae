# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Gradients of a LoRA adapter's small matrices from one reading of the output's gradient, as Triton kernels.

Equations, dimensions and dtypes as in `lora_backward.py`, its reference.

dS is a sum over columns and dB one over rows: a program that reads a piece of dY once can finish neither. Here a
program owns `BN` columns and `SPLIT` rows; it keeps its dB in registers over its rows and writes its share of dS after
every `BT` of them. A second kernel adds the shares of both in their order, scales and rounds. There are no atomics
(LoRAFusion, whose split point this is, adds dB by atomics in fp32): the same tensors give the same bits. A row of dS
has the same bits whatever rows are beside it. Which sums make dB follows from T, N, r and dtype and not from the size
of the GPU: rows are taken a chunk at a time, of those each `SPLIT` are one share.

Both products are made transposed, dB^T = S^T dY and dS^T = B^T dY^T: Triton (3.6, 3.9) then loads dY ahead, two tiles
of `BT` rows. Of dB = dY^T S and dS = dY B it did not where mma.sync makes both (on all but 9.0 and 10.0), and on 9.0
had to be kept from it: for wgmma, which runs on by itself, it gave dY a buffer too few. Now wgmma and tcgen05 make both
or, up to r = 32, neither: they take 64 rows. As compiled for 9.0, at r = 16 and N = 4096, 4 programs fit an SM by
registers, with 128 KB of dY on their way.

Memory traffic for a value of dY in 16 bits: 2 bytes, and 8 r (1 / BN + 1 / SPLIT) bytes of shares, written and read:
1 at r = 16 (0.75 where N is 8192 or more), 3 at r = 64. Two products of cuBLAS read dY twice: 4 bytes. What decides is
how many of the shares stay in the L2 cache; of a row they take 4 N r (1 / BN + 1 / SPLIT) bytes, of a chunk of
N = 4096 17 MB at r = 16 and 25 MB at r = 64, at the gate of 8B 22 MB and 88 MB. Rank 64 is where two products may win.
Above it they are what runs here: each then does r operations a byte or more, and shares would outgrow dY.

Measured on an H100 in a whole step, not yet alone. The kernel before, which awaited every tile of dY and every share,
took 0.132 ms there for 16,384 rows of N = 4096 at r = 16, 34 % of a copy's rate, and 4.5 % of an 8B step in all.

Rejected: dB's shares streamed and dS kept in registers (the same traffic, rows and columns exchanged); one program for
all columns of some rows (few programs, and dB's shares as large as dY at 128 rows and r = 32); blocks of 512 columns
from rank 32 on (106,496 bytes of shared memory; 8.6, 8.9 and 12.0 have 101,376); 2 warps, too few for wgmma at any rank
(at rank 64 they spill); dS = dY B beside dB^T (half as many matrix instructions more).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv
from fam_engine.kernels.mm_fp32 import mm_fp32

# The largest rank that is worth it, see above, or of which numbers fit in registers, by their bytes.
_MAX_RANK = {2: 64, 4: 32}
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
    is_column, is_rank = (column < N)[None, :], (rank < R)[:, None]
    B_place = column[None, :] * R + rank[:, None]
    B = tl.load(lora_B + B_place, mask=is_column & is_rank, other=0.0)
    grad_B = tl.zeros([RANK, BN], tl.float32)

    # Of unknown length: a loop of 8 steps would be unrolled to 4 times the code.
    for first in range(first_row, tl.minimum(first_row + SPLIT, num_rows), BT):
        row = first + tl.arange(0, BT)
        is_row = row < num_rows
        row = row.to(tl.int64)
        dY = tl.load(
            grad + row[:, None] * grad_stride + column[None, :],
            mask=is_row[:, None] & is_column,
            other=0.0,
        )
        S_mask = is_row[None, :] & is_rank
        S = tl.load(inner + row[None, :] * inner_stride + rank[:, None], mask=S_mask, other=0.0)
        # dS first: the other way around the loop takes 138 registers on 9.0, and 3 programs fit an SM, not 4.
        grad_S = tl.dot(B, tl.trans(dY), input_precision="ieee")
        S_place = (block.to(tl.int64) * num_rows + row)[None, :] * R + rank[:, None]
        tl.store(inner_shares + S_place, grad_S, mask=S_mask)
        grad_B = tl.dot(S, dY, grad_B, input_precision="ieee")

    B_shares += tl.program_id(1).to(tl.int64) * (N * R)
    tl.store(B_shares + B_place, grad_B, mask=is_column & is_rank)


@triton.jit(do_not_specialize=["num_blocks", "num_splits", "num_rows"])
def _add_shares(
    inner_shares,
    B_shares,
    grad_inner,
    grad_B,
    scaling,
    num_blocks,
    num_splits,
    num_rows,
    out_stride,
    N: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Add the shares of dB, in the first programs, and of dS; scale, and add to dB and write dS."""
    num_B_programs: tl.constexpr = tl.cdiv(N * R, BLOCK)
    program = tl.program_id(0)
    if program < num_B_programs:
        place = program * BLOCK + tl.arange(0, BLOCK)
        total = _in_order(B_shares, num_splits, N * R, place, AT_ONCE) * scaling
        mask = place < N * R
        total += tl.load(grad_B + place, mask=mask)
        tl.store(grad_B + place, total, mask=mask)
    else:
        place = (program - num_B_programs) * BLOCK + tl.arange(0, BLOCK)
        total = _in_order(inner_shares, num_blocks, num_rows * R, place, AT_ONCE) * scaling
        out = grad_inner + (place // R).to(tl.int64) * out_stride + place % R
        tl.store(out, total.to(grad_inner.dtype.element_ty), mask=place < num_rows * R)


@triton.jit
def _in_order(shares, num_shares, size, place, AT_ONCE: tl.constexpr):
    """Add the values at `place` of all shares, [num_shares, size], one share after the other."""
    total = tl.zeros(place.shape, tl.float32)
    for first in range(0, num_shares, AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            # Beyond the last share is nothing, and adds nothing.
            end = tl.where(first + i < num_shares, size, 0)
            total += tl.load(shares + place, mask=place < end, other=0.0)
            shares += size
    return total


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
    if rank > _MAX_RANK[grad_TN.dtype.itemsize]:
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
    making = _making(width, rank, grad_TN.dtype)
    adding = _adding(width, rank)
    split, block = making.constants["SPLIT"], adding.constants["BLOCK"]
    num_blocks = cdiv(width, making.constants["BN"])
    chunk_size = _chunk(width, rank)
    size = min(chunk_size, grad_TN.shape[0])
    inner_shares = grad_B_NR.new_empty(num_blocks * size * rank)
    B_shares = grad_B_NR.new_empty(cdiv(size, split) * width * rank)
    for first in range(0, grad_TN.shape[0], chunk_size):
        chunk = slice(first, first + chunk_size)
        grad, inner, grad_inner = grad_TN[chunk], inner_TR[chunk], grad_inner_TR[chunk]
        num_rows = len(grad)
        num_splits = cdiv(num_rows, split)
        shares = (inner_shares, B_shares)
        strides = (grad.stride(0), inner.stride(0))
        _make_shares[(num_blocks, num_splits)](
            grad, inner, lora_B_NR, *shares, num_rows, *strides, **making.keywords
        )
        sizes = (num_blocks, num_splits, num_rows, grad_inner.stride(0))
        _add_shares[(cdiv(width * rank, block) + cdiv(num_rows * rank, block),)](
            *shares, grad_inner, grad_B_NR, scaling, *sizes, **adding.keywords
        )


def _padded(rank: int) -> int:
    return 1 << max(4, (rank - 1).bit_length())


def _chunk(width: int, rank: int) -> int:
    """Give how many rows have shares at a time: the smaller N r, the more, for as many programs and fewer launches."""
    return 4096 * max(1, 8192 * 16 // (width * _padded(rank)))


@cache
def _making(width: int, rank: int, dtype: torch.dtype) -> Launch:
    padded = _padded(rank)
    # Large matrices have programs enough for blocks that write fewer shares; above rank 16 memory is too small.
    columns = 512 if width >= 8192 and padded == 16 else 256
    sizes = {"BN": columns, "BT": 32, "SPLIT": 512 if padded == 64 else 256}
    if dtype.itemsize == 4:  # no matrix instructions, whose operands take few registers
        sizes = {"BN": 64, "BT": 16, "SPLIT": 256}
    constants = {"N": width, "R": rank, "RANK": padded, **sizes}
    return Launch(constants, num_warps=8 if sizes["BN"] * padded > 4096 else 4, num_stages=3)


@cache
def _adding(width: int, rank: int) -> Launch:
    # A value a thread: with two or four the compiler, which wants 32 registers, has 7 or 4 of 16 loads in flight.
    return Launch({"N": width, "R": rank, "BLOCK": 128, "AT_ONCE": 16})


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    bf16, fp32 = POINTER[torch.bfloat16], POINTER[torch.float32]
    shares = dict.fromkeys(("inner_shares", "B_shares"), fp32)
    for rank in (16, 32):
        yield Variant(
            name=f"lora_backward shares fp32 N=4096 r={rank}",
            kernel=_make_shares,
            arguments={
                **dict.fromkeys(("grad", "inner", "lora_B"), fp32),
                **shares,
                **dict.fromkeys(("num_rows", "grad_stride", "inner_stride"), "i32"),
            },
            launch=_making(4096, rank, torch.float32),
            divisible=frozenset({"grad_stride", "inner_stride"}),
        )
    for rank, width in product((16, 32, 64), _SHIPPED):
        yield Variant(
            name=f"lora_backward shares bf16 N={width} r={rank}",
            kernel=_make_shares,
            arguments={
                **dict.fromkeys(("grad", "inner", "lora_B"), bf16),
                **shares,
                **dict.fromkeys(("num_rows", "grad_stride", "inner_stride"), "i32"),
            },
            launch=_making(width, rank, torch.bfloat16),
            divisible=frozenset({"grad_stride", "inner_stride"}),
            # Up to rank 32 mma.sync everywhere, also where the gate looks for wgmma or tcgen05.
            uses_matrix_units=rank == 64 or capability not in (90, 100),
        )
        yield Variant(
            name=f"lora_backward sums bf16 N={width} r={rank}",
            kernel=_add_shares,
            arguments={
                **shares,
                **{"grad_inner": bf16, "grad_B": fp32, "scaling": "fp32"},
                **dict.fromkeys(("num_blocks", "num_splits", "num_rows", "out_stride"), "i32"),
            },
            launch=_adding(width, rank),
            divisible=frozenset({"out_stride"}),
        )
