"""The residual stream: add to it and norm the sum, and its gradient: torch reference and CPU path.

Equation: residual = residual + delta; out = rmsnorm(residual) (see `rmsnorm.py`). The sum is rounded
to the residual's dtype and what is normed is the rounded sum, which is what the next layer reads.

Backward: grad_residual = grad_residual + rmsnorm's gradient of grad_out. It is the gradient of the
old residual and of delta alike, and what the product that made delta goes on with.

Dimensions: T tokens, D hidden size; the rows of each tensor may be any distance apart (inputs of
products with LoRA are [T, D + r], the last r columns made by another).
Dtypes: bf16, fp32 or fp64; arithmetic in fp32 (fp64 for fp64); one rounding a value written.
Saved for backward: the rounded sum, and `rstd` (4 bytes a token).
Memory traffic: forward 2D values in, 2D out, beside 5D for an addition and a norm; backward 3D in, D out.
A product that adds itself to the residual (`addmm`) and then this without delta moves only 3D, and
rounds once less; delta is for products that cannot: with a bias, or into a residual of another dtype.
"""

from __future__ import annotations

import torch

from fam_engine.kernels.chunking import chunks
from fam_engine.kernels.rmsnorm import inverse_rms, rmsnorm_backward


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
        residual: [T, D], rows contiguous.
        delta: Like `residual`; None: nothing to add, residual is only normed.
        weight: [D].
        eps: Added to the mean square.
        out: [T, D], rows contiguous.
        rstd: [T] in fp32 (fp64 for fp64), where 1 / sqrt(mean square + eps) is written.
    """
    wide = torch.promote_types(residual.dtype, torch.float32)
    weight = weight.to(wide)
    if delta is not None:
        residual.add_(delta)
    for rows in chunks(residual):
        x = residual[rows].to(wide)
        scale = inverse_rms(x, eps=eps)
        out[rows] = (x * scale).mul_(weight)
        if rstd is not None:
            rstd[rows] = scale[:, 0]


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
        grad_out: Gradient of `out`, [T, D], rows contiguous, in any dtype.
        residual: The sum that was normed, [T, D], rows contiguous.
        weight: [D].
        rstd: [T], as `add_rmsnorm` wrote it.
        grad_residual: [T, D], rows contiguous, in any dtype: on entry the gradient of the sum by all that
            follows but the norm, on return that of the old residual, and of delta.
    """
    wide = rstd.dtype
    weight = weight.to(wide)
    for rows in chunks(residual):
        grad = rmsnorm_backward(
            grad_out[rows].to(wide), residual[rows].to(wide), weight, rstd=rstd[rows, None]
        )
        grad_residual[rows] = grad.add_(grad_residual[rows])
