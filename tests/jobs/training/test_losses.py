"""Weights of tokens against computations by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fam_engine.jobs.training.losses import NEEDS_BASE, LossName, LossSettings, token_weights

# Probabilities of four tokens, under the model in training and under its base.
P = torch.tensor([0.5, 0.9, 0.01, 0.2], dtype=torch.float64)
P_BASE = torch.tensor([0.5, 0.39, 0.02, 1.0], dtype=torch.float64)
EXPECTED: dict[LossName, list[float]] = {
    "plain": [1, 1, 1, 1],
    # 1 / p_base is 2, 2.56, 50, 1, to compare with 2.5.
    "stm": [1, 0, 0, 1],
    # 2.5 * p_base is 1.25, 0.975, 0.05, 2.5; at most 1.
    "soft": [1, 0.975, 0.05, 1],
    "dft": [0.5, 0.9, 0.01, 0.2],
    # log(p_base / p) is 0, -0.836, 0.693, 1.609, to compare with -0.5.
    "excess": [1, 0, 1, 1],
}


@pytest.mark.parametrize("loss", EXPECTED)
def test_equal_to_the_hand_computation(loss: LossName) -> None:
    settings = LossSettings(loss=loss, min_excess=-0.5)
    nll_R = (-P.log()).requires_grad_()
    weights_R = token_weights(nll_R, -P_BASE.log(), settings)
    assert weights_R.tolist() == pytest.approx(EXPECTED[loss])
    assert weights_R.dtype == torch.float64
    assert not weights_R.requires_grad


@pytest.mark.parametrize("loss", EXPECTED)
def test_which_losses_ask_the_base(loss: LossName) -> None:
    if loss in NEEDS_BASE:
        with pytest.raises(AssertionError, match="base"):
            token_weights(-P.log(), None, LossSettings(loss=loss))
    else:
        assert token_weights(-P.log(), None, LossSettings(loss=loss)).shape == (4,)


def test_dft_has_the_gradient_of_the_paper() -> None:
    """d/d nll of sg(p) * nll is p; were the weight differentiated it would be p * (1 - nll)."""
    nll_R = (-P.log()).requires_grad_()
    (token_weights(nll_R, None, LossSettings(loss="dft")) * nll_R).sum().backward()
    assert nll_R.grad is not None
    assert nll_R.grad.tolist() == pytest.approx(P.tolist())


@pytest.mark.parametrize("loss", EXPECTED)
def test_an_untrained_adapter_trains_tokens_of_any_surprisal(loss: LossName) -> None:
    """Nothing overflows at 10,000 nats, nothing is left out for rounding at the start."""
    nll_R = torch.tensor([0.0, 1e-300, 0.9, 1e4], dtype=torch.float64)
    weights_R = token_weights(nll_R, nll_R, LossSettings(loss=loss))
    assert bool(((weights_R >= 0) & (weights_R <= 1)).all())
    assert weights_R[0] == 1
    if loss == "excess":
        assert bool((weights_R == 1).all())


@pytest.mark.parametrize("at", [2.5, 1.0])
def test_the_threshold_itself_is_kept(at: float) -> None:
    settings: dict[str, Any] = {"max_token_perplexity": at}
    nll_R = torch.full((1,), math.log(at), dtype=torch.float64)
    for loss in ("stm", "soft"):
        assert token_weights(nll_R, nll_R, LossSettings(loss=loss, **settings)).tolist() == [1.0]


def test_a_micro_batch_of_masked_tokens_has_loss_and_gradient_zero() -> None:
    nll_R = torch.tensor([3.0, 8.0], dtype=torch.float64, requires_grad=True)
    (token_weights(nll_R, nll_R, LossSettings(loss="stm")) * nll_R).sum().backward()
    assert nll_R.grad is not None
    assert nll_R.grad.tolist() == [0.0, 0.0]
