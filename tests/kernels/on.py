"""What Triton kernels are tested on: a GPU where there is one, else Triton's interpreter on CPU tensors.

The interpreter is silently wrong for arithmetic in bf16, so that dtype is left to the GPU.
"""

from __future__ import annotations

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE.type == "cuda")


def rounding(dtype: torch.dtype) -> float:
    """Give the relative error of a value computed in float32 and rounded once to `dtype`."""
    return torch.finfo(dtype).eps * (6 if dtype == torch.float32 else 0.51)
