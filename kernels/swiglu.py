"""The gated activation of the MLP: torch reference and CPU path.

Equation: out = silu(gate) * up = gate / (1 + exp(-gate)) * up (Shazeer 2020, arXiv 2002.05202).

Backward, with s = 1 / (1 + exp(-gate)):

    grad_up = grad * gate * s        grad_gate = grad * up * (s + gate * s * (1 - s))

It makes out anew, which the gradient of an adapter of the next matrix needs, so that the forward
pass need not keep it: of a layer's activations it would be half of gate and up again.

Dimensions: T rows, F intermediate size; gate and up lie side by side, [T, 2F], as the merged matrix
product leaves them.
Dtypes: bf16, fp32 or fp64 in; arithmetic in fp32 (fp64 for fp64); one rounding out.
Memory traffic: 2F values in, F out; the wide copy of the gate stays in the L2 cache. Backward 3F in,
3F out, in place.

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

from fam_engine.kernels.chunking import chunks

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


def swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write the gradients of gate and up in their place, and silu(gate) * up.

    Args:
        grad: Gradient of silu(gate) * up, [T, F], rows contiguous.
        gate_up: [T, 2F] of the same dtype, rows contiguous: gate and up on entry, on return their
            gradients.
        out: [T, F] of the same dtype, what `swiglu` writes; may be `grad` itself.
    """
    wide, width = torch.promote_types(grad.dtype, torch.float32), grad.shape[1]
    for rows in chunks(grad):
        gate, up = gate_up[rows].to(wide).chunk(2, dim=1)
        sigmoid = 1 / (1 + (-gate).exp())
        silu = gate * sigmoid
        grad_up = grad[rows] * silu
        grad_gate = grad[rows] * up * (sigmoid + silu * (1 - sigmoid))
        swiglu(gate_up[rows], out=out[rows])
        gate_up[rows, :width], gate_up[rows, width:] = grad_gate, grad_up
