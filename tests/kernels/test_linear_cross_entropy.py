"""The head's loss and gradient against torch's own, in any tiling and far from zero."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from fam_engine.kernels import linear_cross_entropy as kernel


def make(
    num_rows: int, vocab_size: int, dtype: torch.dtype, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden_RD = (torch.randn(num_rows, 16) * spread).to(dtype)
    head_VD = torch.randn(vocab_size, 16).to(dtype)
    return hidden_RD, head_VD, torch.randint(0, vocab_size, (num_rows,))


def truth(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = hidden_RD.double().requires_grad_()
    nll_R = cross_entropy(hidden @ head_VD.double().T, targets_R, reduction="none")
    (gradient_RD,) = torch.autograd.grad(nll_R.sum(), hidden)
    return nll_R.detach(), gradient_RD


# 1: nothing but the target; 1024: one tile; 1025: a tile of one token. 513 rows: a tile of one row.
@pytest.mark.parametrize("vocab_size", [1, 63, 1024, 1025, 5000])
@pytest.mark.parametrize("num_rows", [1, 513])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)],
)
def test_equals_the_dense_loss(
    num_rows: int, vocab_size: int, dtype: torch.dtype, tolerance: float
) -> None:
    given = make(num_rows, vocab_size, dtype)
    nll_R, gradient_RD = kernel.linear_cross_entropy(*given, with_gradient=True)
    expected_nll, expected_gradient = truth(*given)
    assert gradient_RD is not None
    assert nll_R.dtype == torch.float64
    assert gradient_RD.dtype == torch.promote_types(dtype, torch.float32)
    assert (nll_R - expected_nll).abs().max() <= tolerance
    assert (gradient_RD - expected_gradient).abs().max() <= tolerance


@pytest.mark.parametrize("spread", [0.0, 60.0, 2000.0])
def test_flat_and_extreme_logits(spread: float) -> None:
    given = make(64, 3000, torch.float32, spread)
    nll_R, gradient_RD = kernel.linear_cross_entropy(*given, with_gradient=True)
    expected_nll, expected_gradient = truth(*given)
    assert gradient_RD is not None
    size = max(1.0, spread)
    assert (nll_R - expected_nll).abs().max() <= 1e-5 * size
    # An error of a logit moves its softmax by as much, at most.
    assert (gradient_RD - expected_gradient).abs().max() <= 1e-5 * size


def test_the_gradient_changes_no_bit_of_the_loss() -> None:
    given = make(600, 2500, torch.bfloat16)
    nll_R, gradient_RD = kernel.linear_cross_entropy(*given, with_gradient=False)
    assert gradient_RD is None
    assert torch.equal(nll_R, kernel.linear_cross_entropy(*given, with_gradient=True)[0])


def test_what_is_not_finite_is_seen() -> None:
    hidden_RD, head_VD, targets_R = make(64, 3000, torch.float32)
    hidden_RD[5] = torch.nan
    nll_R, gradient_RD = kernel.linear_cross_entropy(
        hidden_RD, head_VD, targets_R, with_gradient=True
    )
    assert gradient_RD is not None
    assert nll_R.isnan().nonzero().tolist() == [[5]]
    assert gradient_RD.isnan().any(1).nonzero().tolist() == [[5]]
