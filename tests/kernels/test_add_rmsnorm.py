from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.add_rmsnorm import add_rmsnorm, add_rmsnorm_backward
from fam_engine.kernels.rmsnorm import rmsnorm

EPS = 1e-5


def written_out(
    residual: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the sum and its norm as autograd can follow them."""
    total = residual + delta
    return total, total / (total.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_addition_then_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    residual, delta = (torch.randn(301, 896).to(dtype) for _ in range(2))
    weight = torch.randn(896).to(dtype)
    total = residual + delta
    out = torch.empty_like(residual)
    rstd = torch.empty(301, dtype=torch.promote_types(dtype, torch.float32))
    add_rmsnorm(residual, delta, weight, eps=EPS, out=out, rstd=rstd)
    assert torch.equal(residual, total)
    assert torch.equal(out, rmsnorm(total, weight, eps=EPS))
    expected = (total.double().square().mean(-1) + EPS).rsqrt()
    assert torch.allclose(rstd.double(), expected, rtol=4 * torch.finfo(rstd.dtype).eps, atol=0)


def test_nothing_to_add_is_a_norm() -> None:
    torch.manual_seed(0)
    residual, weight = torch.randn(5, 40), torch.randn(40)
    before, out = residual.clone(), torch.empty(5, 40)
    add_rmsnorm(residual, None, weight, eps=EPS, out=out)
    assert torch.equal(residual, before)
    assert torch.equal(out, rmsnorm(before, weight, eps=EPS))


def test_the_sum_may_lie_where_delta_was() -> None:
    torch.manual_seed(0)
    residual, delta = (torch.randn(5, 40).to(torch.bfloat16) for _ in range(2))
    weight, total, before = torch.randn(40), residual + delta, residual.clone()
    add_rmsnorm(delta, residual, weight, eps=EPS, out=torch.empty_like(delta))
    assert torch.equal(delta, total)
    assert torch.equal(residual, before)


# 1 value, odd rows, widths of no power of two.
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (5, 100), (7, 172), (3, 896)])
def test_gradient_equals_autograd(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    residual, delta, grad_out, above = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    weight = torch.randn(shape[1], dtype=torch.float64)
    residual.requires_grad_()
    delta.requires_grad_()
    total, normed = written_out(residual, delta, weight)
    expected = torch.autograd.grad((total, normed), (residual, delta), (above, grad_out))

    kept, out = residual.detach().clone(), torch.empty(shape, dtype=torch.float64)
    rstd = torch.empty(shape[0], dtype=torch.float64)
    add_rmsnorm(kept, delta.detach(), weight, eps=EPS, out=out, rstd=rstd)
    add_rmsnorm_backward(grad_out, kept, weight, rstd, grad_residual=above)
    for gradient in expected:
        assert torch.allclose(above, gradient, rtol=1e-10, atol=1e-10)


def test_gradient_in_bf16_is_rounded_once() -> None:
    torch.manual_seed(0)
    residual, grad_out, above = (torch.randn(7, 896).bfloat16() for _ in range(3))
    weight, out, rstd = torch.randn(896).bfloat16(), torch.empty(7, 896), torch.empty(7)
    add_rmsnorm(residual, None, weight, eps=EPS, out=out, rstd=rstd)
    wide = above.double()
    add_rmsnorm_backward(
        grad_out.double(), residual.double(), weight.double(), rstd.double(), grad_residual=wide
    )
    add_rmsnorm_backward(grad_out, residual, weight, rstd, grad_residual=above)
    # Half a unit of bf16's last place, and fp32's noise in terms that may cancel.
    unit = 0.5 * torch.finfo(torch.bfloat16).eps
    assert ((above.double() - wide).abs() <= unit * wide.abs() + 1e-5).all()
