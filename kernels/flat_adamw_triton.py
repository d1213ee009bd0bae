# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""One step of AdamW over all parameters as one flat buffer, as a Triton kernel.

Equations, dimensions and dtypes as in `flat_adamw.py`, its reference; root and quotients are correctly rounded.
Memory traffic: 16 bytes a parameter in, 12 out; the scalars from the cache.

One program moves `BLOCK` neighbouring parameters. P is a constant, set by model and rank: were it not known to be a
multiple of 4, the last block's mask would make every load one of 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv

# Two loads of 16 bytes a thread and buffer.
_BLOCK = 1024
# Parameters of adapters of all seven matrices of a layer: model, rank, P. A rank adds K + N a matrix.
ADAPTER_SIZES: Final = {
    "Llama-3.2-1B r16": 11_272_192,
    "Llama-3.2-3B r16": 24_313_856,
    "Llama-3.1-8B r64": 167_772_160,
}


@triton.jit
def _flat_adamw(
    values,
    grads,
    exp_avgs,
    exp_avg_sqs,
    scalars,
    clip,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    decay, step_size, correction = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < P
    param = tl.load(values + place, mask=inside, other=0.0)
    grad = tl.load(grads + place, mask=inside, other=0.0) * tl.load(clip)
    exp_avg = tl.load(exp_avgs + place, mask=inside, other=0.0)
    exp_avg_sq = tl.load(exp_avg_sqs + place, mask=inside, other=0.0)

    exp_avg += (1 - BETA1) * (grad - exp_avg)
    exp_avg_sq = BETA2 * exp_avg_sq + (1 - BETA2) * grad * grad
    denominator = tl.div_rn(tl.sqrt_rn(exp_avg_sq), correction) + EPS
    param = decay * param - step_size * tl.div_rn(exp_avg, denominator)

    tl.store(values + place, param, mask=inside)
    tl.store(exp_avgs + place, exp_avg, mask=inside)
    tl.store(exp_avg_sqs + place, exp_avg_sq, mask=inside)


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
        scalars: fp32[3] on the device, what `flat_adamw.step_scalars` gives.
        clip: fp32[1] on the device, what gradients are multiplied by.
        betas: Decay of the moments.
        eps: What is added to the root of the second moment.
    """
    size = params_P.numel()
    for buffer in (params_P, grads_P, exp_avg_P, exp_avg_sq_P):
        assert buffer.dtype == torch.float32
        assert buffer.shape == (size,)
        assert buffer.is_contiguous()
    assert scalars.dtype == clip.dtype == torch.float32
    grid = (cdiv(size, _BLOCK),)
    _flat_adamw[grid](
        params_P,
        grads_P,
        exp_avg_P,
        exp_avg_sq_P,
        scalars,
        clip,
        **_launch(size, betas, eps).keywords,
    )


def _launch(size: int, betas: tuple[float, float], eps: float) -> Launch:
    return Launch({"BETA1": betas[0], "BETA2": betas[1], "EPS": eps, "P": size, "BLOCK": _BLOCK})


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    fp32 = ("values", "grads", "exp_avgs", "exp_avg_sqs", "scalars", "clip")
    for name, size in ADAPTER_SIZES.items():
        yield Variant(
            name=f"flat_adamw fp32 {name}",
            kernel=_flat_adamw,
            arguments=dict.fromkeys(fp32, POINTER[torch.float32]),
            launch=_launch(size, (0.9, 0.999), 1e-8),
            values=_BLOCK,
        )
