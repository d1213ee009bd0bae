"""Matrices whose quantization to NF4 is easy to get wrong by a bit."""

from __future__ import annotations

import torch

from fam_engine.kernels.nf4_quantize import midpoints


def hard_blocks(dtype: torch.dtype) -> torch.Tensor:
    """Give [N, 64]: in a row each, values in the middle between two of the table, next to it, and extremes.

    Rows are scaled by powers of two and by what is none; an absmax leads each.
    """
    middle = midpoints()
    up, down = (torch.nextafter(middle, torch.full_like(middle, to)) for to in (2.0, -2.0))
    near = torch.cat((torch.tensor([1.0]), middle, up, down, torch.tensor([-1.0, 0.0, -0.0])))
    near = torch.nn.functional.pad(near, (0, 64 - len(near)), value=0.3)
    scales = torch.tensor([1.0, 2.0**-7, 3.7, 0.0123, 1e-20, 1e30, 65504.0, 1 / 3])
    if dtype == torch.float16:
        scales = scales[(scales > 1e-4) & (scales < 1e5)]
    info = torch.finfo(dtype)
    extremes = torch.zeros(9, 64)
    extremes[1, 5], extremes[2, 0], extremes[3, 63] = info.max, info.tiny, -info.smallest_normal
    extremes[4, ::2], extremes[5] = info.max, -info.max
    # Smaller than any normal number: at their sizes the inverse of the absmax is cut.
    extremes[6] = torch.linspace(-1, 1, 64) * info.smallest_normal
    extremes[7] = torch.linspace(-1, 1, 64) * info.smallest_normal * 0.01
    extremes[8, 0] = -0.0
    return torch.cat((near * scales[:, None], extremes)).to(dtype)
