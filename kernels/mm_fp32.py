"""A matrix product whose sums leave it in fp32, whatever its operands are in (fp64 for fp64).

On a GPU it is one of cuBLAS on operands as they are; on a CPU, where torch has no such product, operands are brought to
fp32 first, some of the summed dimension at a time, so that no copy of a batch's size exists.
"""

from __future__ import annotations

from typing import Final

import torch

# Of the summed dimension, brought to fp32 at a time.
SUMMED: Final = 512


def mm_fp32(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write a @ b.

    Args:
        a: [M, K] in bf16, fp16, fp32 or fp64, either of its dimensions contiguous.
        b: [K, N] of the same dtype, either of its dimensions contiguous.
        out: fp32[M, N] (fp64 for fp64), rows contiguous, any row stride.
    """
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.zero_()
        for left, right in zip(a.split(SUMMED, dim=1), b.split(SUMMED), strict=True):
            out.addmm_(left.to(out.dtype), right.to(out.dtype))
