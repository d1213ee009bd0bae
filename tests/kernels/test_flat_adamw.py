"""The flat AdamW against torch's own over parameters of their own."""

from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import flat_adamw as kernel
from fam_engine.kernels.flat_adamw import flat_adamw, step_scalars
from fam_engine.kernels.grad_norm import grad_norm

BETAS, EPS, WEIGHT_DECAY, MAX_NORM = (0.9, 0.999), 1e-8, 0.1, 3.0


def rate(step: int) -> float:
    return 1e-2 / step


def torch_steps(start: torch.Tensor, grads: list[torch.Tensor]) -> torch.Tensor:
    """Give the parameters after all steps of torch's optimizer, each clipped by torch."""
    # Two leaves, so that the norm is one of all and not of each.
    leaves = [part.clone().requires_grad_() for part in start.tensor_split(2)]
    settings = {"betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.AdamW(leaves, lr=0.0, **settings)
    for step, grad in enumerate(grads, 1):
        for leaf, part in zip(leaves, grad.tensor_split(2), strict=True):
            leaf.grad = part.clone()
        torch.nn.utils.clip_grad_norm_(leaves, MAX_NORM)
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
    return torch.cat([leaf.detach() for leaf in leaves])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-7)])
def test_twenty_clipped_steps_are_those_of_torch(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_VALUES", 64)
    torch.manual_seed(0)
    start = torch.randn(301, dtype=dtype)
    # Norms of 0.2 to 17 times the limit: some steps are clipped, some are not.
    grads = [torch.randn(301, dtype=dtype) * 0.03 * 1.25**step for step in range(20)]
    params = start.clone()
    exp_avg, exp_avg_sq = torch.zeros_like(params), torch.zeros_like(params)
    factors = []
    for step, grad in enumerate(grads, 1):
        scalars = step_scalars(step, rate(step), betas=BETAS, weight_decay=WEIGHT_DECAY)
        clip = grad_norm(grad, max_norm=MAX_NORM)[1:]
        factors.append(clip.item())
        flat_adamw(
            params,
            grad,
            exp_avg,
            exp_avg_sq,
            scalars=scalars.to(dtype),
            clip=clip,
            betas=BETAS,
            eps=EPS,
        )
    assert min(factors) < 0.1
    assert max(factors) == 1
    assert (params - torch_steps(start, grads)).abs().max() <= tolerance
    assert (params - start).abs().max() > 0.01


def test_a_norm_that_is_no_number_stays_seen() -> None:
    for bad in (torch.nan, torch.inf):
        norm, factor = grad_norm(torch.tensor([1.0, bad]), max_norm=1.0)
        assert not norm.isfinite()
        assert (factor * torch.tensor([1.0, bad])).isnan().any()
