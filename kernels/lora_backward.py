"""Gradients of a LoRA adapter's small matrices from one reading of the output's gradient: torch reference and CPU path.

Equations, for y = ... + scaling * S B^T with S = x A^T:

    dS = scaling * dY B        dB = dB + scaling * dY^T S

Of the rest, dA = dS^T x is a product of two tall matrices and stays one of cuBLAS or MKL, as does the adapter's share
of dx, which is dS A, in the product with the frozen weight: dS is written where that product reads it, into the last
columns of a buffer that holds dY before them.

Dimensions: T rows, N output features of one source matrix (q, or k, ...: a slice of the columns of a merged matrix),
r rank.
Dtypes: dY, S, B and dS in the compute dtype; sums in fp32 (fp64 for fp64), scaled there, dS rounded once; dB in fp32.
Memory traffic: N values a row, whatever is small beside them; here twice.
"""

from __future__ import annotations

from typing import Final

import torch

# Rows whose gradients are brought to fp32 at a time: [512, N] stays in the L3 cache.
_ROWS: Final = 512


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
        grad_TN: [T, N], gradient of the source's output; rows contiguous, any row stride.
        inner_TR: [T, r], S; rows contiguous, any row stride.
        lora_B_NR: [N, r], contiguous, unscaled.
        scaling: alpha / r, or alpha / sqrt(r).
        grad_inner_TR: [T, r], written; rows contiguous, any row stride; no part of `grad_TN` or `inner_TR`.
        grad_B_NR: fp32[N, r] (fp64 for fp64), contiguous, added to.
    """
    wide = torch.promote_types(grad_TN.dtype, torch.float32)
    lora_B = lora_B_NR.to(wide)
    total_RN = lora_B.new_zeros(lora_B.shape[::-1])
    for start in range(0, grad_TN.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        grad = grad_TN[rows].to(wide)
        grad_inner_TR[rows] = (grad @ lora_B).mul_(scaling)
        # Not grad^T @ inner: 10 times slower in fp32 (MKL, [4032, 512] and rank 8).
        total_RN.addmm_(inner_TR[rows].to(wide).t(), grad)
    grad_B_NR.add_(total_RN.t(), alpha=scaling)
