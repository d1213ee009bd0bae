"""What Triton kernels are tested on: a GPU where there is one, else Triton's interpreter on CPU tensors."""

from __future__ import annotations

import torch

from tests.kernels.bf16 import mend_interpreter
from tests.kernels.hastened import hasten_interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

if DEVICE.type == "cpu":
    mend_interpreter()
    hasten_interpreter()


def rounding(dtype: torch.dtype) -> float:
    """Give the relative error of a value computed in float32 and rounded once to `dtype`."""
    return torch.finfo(dtype).eps * (6 if dtype == torch.float32 else 0.51)
