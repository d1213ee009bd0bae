"""Norm and activation written where the next product reads them, and their gradients.

In: activations in the compute dtype. Out: the same, rounded once; arithmetic in fp32 (fp64 for fp64).
Rows go in chunks whose wide copies stay in the cache, so that nothing of a batch's size is held in
fp32. Weights of norms are frozen: they have no gradient. The equations are in
`fam_engine.kernels.rmsnorm` and `fam_engine.kernels.swiglu`.

Letters: M rows, D features of a norm, F intermediate size.
"""

from __future__ import annotations

from typing import Final

import torch

from fam_engine.model import ops

# 2^18 fp32 values are 1 MB, the L2 cache of a server core.
_CHUNK_VALUES: Final = 2**18


def rmsnorm_into(x: torch.Tensor, weight: torch.Tensor, *, eps: float, out: torch.Tensor) -> None:
    """Norm [M, D] into `out`, whose rows may be longer than they are wide."""
    for rows in _chunks(x):
        out[rows] = ops.rmsnorm(x[rows], weight, eps=eps)


def rmsnorm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give residual + dx, of x's shape and dtype.

    Args:
        dy: The gradient of the normed values, of x's shape, in any dtype.
        x: [M, D] or [M, heads, D], before the norm.
        weight: [D].
        eps: Added to the mean square.
        residual: Of x's shape, in any dtype: the gradient that went past the norm.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = weight.to(wide)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for rows in _chunks(x):
        values = x[rows].to(wide)
        rstd = ops.inverse_rms(values, eps=eps)
        dx = ops.rmsnorm_backward(dy[rows].to(wide), values, weight, rstd=rstd)
        out[rows] = dx if residual is None else dx.add_(residual[rows])
    return out


def swiglu_backward_(dh: torch.Tensor, gate_up: torch.Tensor) -> None:
    """Turn dh into h and gate, up into their gradients, in place.

    Args:
        dh: [M, F], the gradient of h = silu(gate) * up; afterwards h itself.
        gate_up: [M, 2F]; afterwards its gradient.
    """
    for rows in _chunks(dh):
        ops.swiglu_backward(dh[rows], gate_up[rows], out=dh[rows])


def _chunks(x: torch.Tensor) -> list[slice]:
    step = max(1, _CHUNK_VALUES // max(1, x[:1].numel()))
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]
