"""Rotary position embedding, in place: torch reference and CPU path.

Equation, for the halves a = x[..., :d/2], b = x[..., d/2:] of a head at one position:

    a' = a * cos - b * sin        b' = b * cos + a * sin

the "rotate half" layout of Llama checkpoints (Su et al. 2021, arXiv 2104.09864, equation 34, with
pairs (i, i + d/2) instead of (2i, 2i + 1)).

Dimensions: T tokens, H heads (queries and keys alike), d head width.
Dtypes: x in bf16, fp32 or fp64; cos, sin and the arithmetic fp32 (fp64 for fp64); one rounding.
Memory traffic: x read and written once; chunks of rows stay in the L2 cache. Products and sums are
separate operations on purpose: a fused multiply-add in one loop but not in its scalar tail would
make bits depend on where a row lies.
"""

from __future__ import annotations

import torch

from fam_engine.kernels.chunking import chunks


def rope_(x_THd: torch.Tensor, cos_Td: torch.Tensor, sin_Td: torch.Tensor) -> None:
    """Turn each head by its position, in place.

    Args:
        x_THd: [T, H, d], any strides.
        cos_Td: [T, d / 2] in fp32 (fp64 for fp64).
        sin_Td: Like `cos_Td`.
    """
    half = x_THd.shape[-1] // 2
    for rows in chunks(x_THd):
        a, b = x_THd[rows, :, :half], x_THd[rows, :, half:]
        cos, sin = cos_Td[rows, None], sin_Td[rows, None]
        turned_a = (a * cos).sub_(b * sin)  # mixed dtypes promote to that of cos
        turned_b = (b * cos).add_(a * sin)
        a.copy_(turned_a)
        b.copy_(turned_b)
