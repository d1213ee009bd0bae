"""A matrix product whose sums leave it in fp32, whatever its operands are in.

On a GPU it is one of cuBLAS on operands as they are; on a CPU, where torch has no such product, operands are brought to
fp32 first: that is for tests of the kernels around it.
"""

from __future__ import annotations

import torch


def mm_fp32(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write a @ b.

    Args:
        a: [M, K] in bf16, fp16 or fp32, either of its dimensions contiguous.
        b: [K, N] of the same dtype, either of its dimensions contiguous.
        out: fp32[M, N], rows contiguous, any row stride.
    """
    if a.dtype == torch.float32 or not a.is_cuda:
        torch.mm(a.float(), b.float(), out=out)
    else:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
