"""Queries and keys made ready for attention: normed head by head, turned: torch reference, CPU path.

Equation: out = rope(rmsnorm(x)), a head at a time (see `rmsnorm.py`, `rope.py`); without norm weights
out = rope(x). The norm is rounded to x's dtype before the turn, as transformers does (Qwen3), so the
result has the bits of the two operations one after the other. One rounding would be more exact;
another model, too, than the one trained and published, and other bits on every device.

Backward: the gradient is turned by the transposed tables, a' = a * cos + b * sin and
b' = b * cos - a * sin, then goes through the norm (`rmsnorm_backward`). The transpose, not the inverse:
YaRN's tables also stretch. Both in fp32, with one rounding.

Dimensions: T tokens, N heads, queries first, then keys; d head width. Values are not among them.
Dtypes: bf16, fp32 or fp64; arithmetic and tables in fp32 (fp64 for fp64).
Saved for backward: what was normed, [T, N, d]: the forward pass then writes elsewhere (`out_TNd`), for
the same traffic. Without norms nothing. Rejected: dividing the norm's weight out of the result, which
a weight of 0 forbids; computing the product that made x once more.
Memory traffic: forward x read, out written once; backward grad read and written, x read with norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fam_engine.kernels.chunking import chunks
from fam_engine.kernels.rmsnorm import inverse_rms, rmsnorm, rmsnorm_backward
from fam_engine.kernels.rope import rope_


@dataclass(frozen=True)
class HeadNorms:
    """How heads are normed.

    Attributes:
        q_norm: [d], weight of the queries' norm.
        k_norm: [d], weight of the keys' norm.
        num_query_heads: How many heads are queries, the first ones; all others are keys.
        eps: Added to the mean square.
    """

    q_norm: torch.Tensor
    k_norm: torch.Tensor
    num_query_heads: int
    eps: float

    def of(self, num_heads: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield which of so many heads have which weight; no empty ranges."""
        cut = min(self.num_query_heads, num_heads)
        for heads, weight in ((slice(0, cut), self.q_norm), (slice(cut, num_heads), self.k_norm)):
            if heads.start != heads.stop:
                yield heads, weight


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
        x_TNd: [T, N, d], any distance between tokens and heads.
        cos_Td: [T, d / 2] in fp32 (fp64 for fp64).
        sin_Td: Like `cos_Td`.
        norms: The norms; None: there are none.
        out_TNd: Like `x_TNd`; may be the very same.
    """
    if norms is not None:
        for heads, weight in norms.of(x_TNd.shape[1]):
            out_TNd[:, heads] = rmsnorm(x_TNd[:, heads], weight, eps=norms.eps)
    elif out_TNd is not x_TNd:
        out_TNd.copy_(x_TNd)
    rope_(out_TNd, cos_Td, sin_Td)


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
        grad_TNd: [T, N, d], any distance between tokens and heads.
        x_TNd: What the forward pass was given; None without norms.
        cos_Td: [T, d / 2] in fp32 (fp64 for fp64).
        sin_Td: Like `cos_Td`.
        norms: As in the forward pass.
    """
    if norms is None:
        rope_(grad_TNd, cos_Td, -sin_Td)
        return
    assert x_TNd is not None
    wide = cos_Td.dtype
    for rows in chunks(grad_TNd):
        grad = grad_TNd[rows].to(wide, copy=True)
        rope_(grad, cos_Td[rows], -sin_Td[rows])
        for heads, weight in norms.of(grad.shape[1]):
            x = x_TNd[rows, heads].to(wide)
            rstd = inverse_rms(x, eps=norms.eps)
            grad_TNd[rows, heads] = rmsnorm_backward(grad[:, heads], x, weight.to(wide), rstd=rstd)
