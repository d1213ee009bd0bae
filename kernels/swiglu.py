"""The gated activation of the MLP: torch reference and CPU path.

Equation: out = silu(gate) * up = gate / (1 + exp(-gate)) * up (Shazeer 2020, arXiv 2002.05202).

Dimensions: T rows, F intermediate size; gate and up lie side by side, [T, 2F], as the merged matrix
product leaves them.
Dtypes: bf16, fp32 or fp64 in; arithmetic in fp32 (fp64 for fp64); one rounding out.
Memory traffic: 2F values in, F out; the wide copy of the gate stays in the L2 cache.

Why silu runs on a whole buffer of fixed size: on CPU its vector loop and its scalar tail differ in
the last bit (150 of 4,000 random fp32 values), and where a thread's tail falls depends on the
number of rows and threads. On [T, F] with 3 threads a row's bits changed with T. A buffer that each
thread has an equal part of, a multiple of any vector, has no tails. (Written out, exp and division
are free of this too, at twice the time: 6.2 ms for [512, 4864] bf16 on one core.)
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn.functional import silu

# 2^17 fp32 values a thread are half the L2 cache of a server core; and more than the 2^15 below
# which torch would not use all threads.
VALUES_PER_THREAD: Final = 2**17


def swiglu(gate_up: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write silu(gate) * up.

    Args:
        gate_up: [T, 2F], rows contiguous.
        out: [T, F] of the same dtype.
    """
    num_rows, width = out.shape
    unit = VALUES_PER_THREAD * torch.get_num_threads()
    buffer = torch.zeros(
        -(-width // unit) * unit,
        dtype=torch.promote_types(out.dtype, torch.float32),
        device=out.device,
    )
    step = buffer.numel() // width
    for start in range(0, num_rows, step):
        rows = gate_up[start : start + step]
        gate = buffer[: rows.shape[0] * width].view(-1, width)
        gate.copy_(rows[:, :width])
        silu(buffer, inplace=True)
        out[start : start + step] = gate.mul_(rows[:, width:])
