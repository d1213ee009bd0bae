"""The product of few rows with an NF4 matrix: torch reference and CPU path.

Equation, with W as `nf4_dequantize` gives it in fp32 (fp64 for fp64), the matrices of several sources one below the
other:

    y = x @ W^T + scaling * (x @ A^T) @ B^T + bias

Dimensions: M rows, N output features, K input features, R rank of the adapter.
Dtypes: x, bias and y in bf16, fp16, fp32 or fp64; A and B in fp32. All products and sums in fp32 (fp64 for fp64), one
rounding out. The product of many rows has W in the dtype of x, rounded once more.

Here W is written to memory and read again; the kernel beside this file (`nf4_linear_triton.py`) does not. A row's bits
may change with M here, as those of torch's products do; there they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from fam_engine.kernels.nf4_dequantize import BLOCK_SIZE, LoraFactors, NF4Weight, nf4_dequantize

# Above, a matrix brought to the compute dtype once serves enough rows to pay for its way through memory.
MAX_ROWS: Final = 64


def nf4_linear(
    x: torch.Tensor,
    sources: Sequence[NF4Weight],
    *,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    loras: Sequence[LoraFactors | None] = (),
    adds: bool = False,
) -> None:
    """Write x @ W^T + scaling * (x @ A^T) @ B^T + bias, W [N, K] the sources' matrices one below the other.

    Args:
        x: [M, K], rows contiguous, any row stride; M at most `MAX_ROWS`, K a multiple of 64.
        sources: At least one.
        out: [M, N] of x's dtype, rows contiguous, any row stride: where to write.
        bias: [N] of x's dtype.
        loras: The adapter of each source, or nothing for all; both factors contiguous float32.
        adds: Add to what is in `out`, before the sum is rounded.

    Raises:
        ValueError: M or K is not supported.
    """
    check_shape(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    start = 0
    for source, lora in zip(sources, loras or [None] * len(sources), strict=True):
        stop = start + source.shape[0]
        dense = nf4_dequantize([source], out=x.new_empty(source.shape, dtype=wide))
        total = x.to(wide) @ dense.t()
        if lora is not None:
            inner = x.to(wide) @ lora.lora_A.to(wide).t()
            total.addmm_(inner, lora.lora_B.to(wide).t(), alpha=lora.scaling)
        if bias is not None:
            total += bias[start:stop]
        if adds:
            total += out[:, start:stop]
        out[:, start:stop] = total
        start = stop


def check_shape(x: torch.Tensor) -> None:
    """Refuse rows `nf4_linear` does not take.

    Raises:
        ValueError: More than `MAX_ROWS`, or not whole blocks of 64 values.
    """
    num_rows, num_columns = x.shape
    if num_rows > MAX_ROWS:
        raise ValueError(f"nf4_linear takes at most {MAX_ROWS} rows, found {num_rows}")
    if num_columns % BLOCK_SIZE:
        expected = f"a multiple of {BLOCK_SIZE}"
        raise ValueError(f"nf4_linear takes {expected} input features, found {num_columns}")
