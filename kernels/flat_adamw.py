"""One step of AdamW over all parameters as one flat buffer: torch reference and CPU path.

Equations (Loshchilov and Hutter 2019, arXiv 1711.05101; in the order of `torch.optim.AdamW`), with g = clip * grad:

    m = m + (1 - beta1) (g - m)        v = beta2 v + (1 - beta2) g^2
    p = decay * p - step_size * m / (sqrt(v) / correction + eps)

where decay = 1 - rate * weight_decay, step_size = rate / (1 - beta1^step), correction = sqrt(1 - beta2^step).

Dimensions: P parameters of all adapters, end to end; the buffer's owner makes P a multiple of 16.
Dtypes: all in fp32 (fp64 for fp64).
Memory traffic: 16 bytes a parameter in, 12 out.

Why what changes from step to step is a tensor: a CUDA graph is replayed with other numbers in it, and nothing waits for
the device. Why the powers of the betas are not taken there: 1 - beta2^step from an fp32 power is off by 6e-5 of itself
at the first step; `step_scalars` takes them in double precision and the device gets three numbers.
Why one buffer: an adapter is 100s of small tensors, a launch each and more.
"""

from __future__ import annotations

from typing import Final

import torch

# 2^17 fp32 values of four buffers are about the L2 cache of a server core.
_VALUES: Final = 2**17


def flat_adamw(
    params_P: torch.Tensor,
    grads_P: torch.Tensor,
    exp_avg_P: torch.Tensor,
    exp_avg_sq_P: torch.Tensor,
    *,
    scalars: torch.Tensor,
    clip: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Move parameters along their gradients, in place.

    Args:
        params_P: fp32[P], contiguous; as are the other three.
        grads_P: fp32[P]; left as they are.
        exp_avg_P: fp32[P], the first moment.
        exp_avg_sq_P: fp32[P], the second moment.
        scalars: fp32[3] on the device, what `step_scalars` gives.
        clip: fp32[1] on the device, what gradients are multiplied by.
        betas: Decay of the moments.
        eps: What is added to the root of the second moment.
    """
    decay, step_size, correction = scalars
    buffers = (params_P, grads_P, exp_avg_P, exp_avg_sq_P)
    for param, grad, exp_avg, exp_avg_sq in zip(
        *(buffer.split(_VALUES) for buffer in buffers), strict=True
    ):
        grad = grad * clip
        exp_avg.lerp_(grad, 1 - betas[0])
        exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
        denominator = (exp_avg_sq.sqrt() / correction).add_(eps)
        param.mul_(decay).sub_(exp_avg.div(denominator).mul_(step_size))


def step_scalars(
    step: int, learning_rate: float, *, betas: tuple[float, float], weight_decay: float
) -> torch.Tensor:
    """Give decay, step_size and correction of a step as fp64[3] on the CPU, for a copy to the device.

    Args:
        step: Which step it is, from 1.
        learning_rate: Of this step.
        betas: Decay of the moments.
        weight_decay: Decoupled, of every parameter.
    """
    decay = 1 - learning_rate * weight_decay
    step_size = learning_rate / (1 - betas[0] ** step)
    correction = (1 - betas[1] ** step) ** 0.5
    return torch.tensor((decay, step_size, correction), dtype=torch.float64)
