"""The L2 norm of all gradients, and what clipping multiplies them by: torch reference and CPU path.

Equations: norm = sqrt(sum g^2); factor = min(1, max_norm / (norm + 1e-6)), as in `torch.nn.utils.clip_grad_norm_`.
A norm that is not finite stays seen: it, or what its factor gives, is not finite either.

Dimensions: P values of one flat buffer. Dtypes: fp32 (fp64 for fp64); the sum in fp64.
Memory traffic: 4 bytes a value in. Gradients are not scaled here but where they are read next (`flat_adamw.py`): a pass
less, and both numbers stay on the device.
"""

from __future__ import annotations

from typing import Final

import torch

# What clip_grad_norm_ adds to a norm.
EPS: Final = 1e-6


def grad_norm(grads_P: torch.Tensor, *, max_norm: float) -> torch.Tensor:
    """Compute norm and clipping factor.

    Args:
        grads_P: fp32[P], contiguous.
        max_norm: Above which gradients are scaled down.

    Returns:
        fp32[2] on the device of the gradients: norm, factor. [1:] is the `clip` of `flat_adamw`.
    """
    norm = torch.linalg.vector_norm(grads_P, dtype=torch.float64)
    factor = (max_norm / (norm + EPS)).clamp(max=1)
    return torch.stack((norm, factor)).to(grads_P.dtype)
