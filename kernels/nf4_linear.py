"""The product of few rows with an NF4 matrix: torch reference and CPU path.

Equation, with W as `nf4_dequantize` gives it in the dtype of x:

    y = x @ W^T + scaling * (x @ A^T) @ B^T + bias

Dimensions: M rows, N output features, K input features, R rank of the adapter.
Dtypes: x, bias and y in bf16, fp16, fp32 or fp64; W rounded to that dtype, so that it is the matrix the product of many
rows uses; A and B in fp32. All products and sums in fp32 (fp64 for fp64), one rounding out.

Here W is written to memory and read again; the kernel beside this file (`nf4_linear_triton.py`) does not. A row's bits
may change with M here, as those of torch's products do; there they do not.
"""

from __future__ import annotations

from typing import Final

import torch

from fam_engine.kernels.nf4_dequantize import BLOCK_SIZE, LoraFactors, nf4_dequantize

# Above, a matrix brought to the compute dtype once serves enough rows to pay for its way through memory.
MAX_ROWS: Final = 64


def nf4_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    absmax: torch.Tensor,
    absmax2: torch.Tensor,
    offset: torch.Tensor,
    code2: torch.Tensor,
    *,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    lora: LoraFactors | None = None,
) -> None:
    """Write x @ W^T + scaling * (x @ A^T) @ B^T + bias, of one NF4 matrix W [N, K].

    Args:
        x: [M, K], rows contiguous, any row stride; M at most `MAX_ROWS`, K a multiple of 64.
        packed: uint8[N * K / 2]; this and the next four as in `nf4_dequantize`.
        absmax: uint8[N * K / 64].
        absmax2: float32[ceil(num_blocks / 256)].
        offset: float32[].
        code2: float32[256].
        out: [M, N] of x's dtype, rows contiguous, any row stride: where to write.
        bias: [N] of x's dtype.
        lora: The adapter, both of its factors contiguous float32.

    Raises:
        ValueError: M or K is not supported.
    """
    check_shape(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (out.shape[1], x.shape[1])
    dense = nf4_dequantize(packed, absmax, absmax2, offset, code2, shape=shape, dtype=x.dtype)
    x = x.to(wide)
    total = x @ dense.to(wide).t()
    if lora is not None:
        inner = x @ lora.lora_A.to(wide).t()
        total.addmm_(inner, lora.lora_B.to(wide).t(), alpha=lora.scaling)
    out.copy_(total if bias is None else total.add_(bias))


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
