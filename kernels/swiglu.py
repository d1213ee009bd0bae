"""The gated activation of the MLP: torch reference and CPU path.

Equation: out = silu(gate) * up = gate / (1 + exp(-gate)) * up (Shazeer 2020, arXiv 2002.05202).

Dimensions: T rows, F intermediate size; gate and up lie side by side, [T, 2F], as the merged matrix
product leaves them.
Dtypes: bf16, fp32 or fp64 in; arithmetic in fp32 (fp64 for fp64); one rounding out.
Memory traffic: 2F values in, F out; chunks of rows stay in the L2 cache.

Why not `torch.nn.functional.silu`: on CPU its vector loop and its scalar tail differ in the last
bit (150 of 4,000 random fp32 values), and where a thread's tail falls depends on the number of rows
and threads. With 3 threads a row's bits changed with its neighbours (5 values of 1024 x 172).
exp, division and products of torch give the same bits in both loops.
"""

from __future__ import annotations

from typing import Final

import torch

CHUNK_VALUES: Final = 2**18


def swiglu(gate_up: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write silu(gate) * up.

    Args:
        gate_up: [T, 2F], rows contiguous.
        out: [T, F] of the same dtype.
    """
    num_rows, width = out.shape
    wide = torch.promote_types(out.dtype, torch.float32)
    step = max(1, CHUNK_VALUES // width)
    for start in range(0, num_rows, step):
        gate = gate_up[start : start + step, :width].to(wide)
        divisor = torch.neg(gate).exp_().add_(1)
        torch.div(gate, divisor, out=divisor)
        out[start : start + step] = divisor.mul_(gate_up[start : start + step, width:])
