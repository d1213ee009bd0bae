"""The adapter's small gradients against autograd's."""

from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.lora_backward import lora_backward


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 0.5 * 2**-7)],
)
def test_equals_autograd(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    inner, lora_B = torch.randn(21, 5).to(dtype), torch.randn(13, 5).to(dtype)
    grad = torch.randn(21, 13).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    grad_inner, grad_B = torch.empty_like(inner), torch.ones(13, 5, dtype=wide)
    given = {"scaling": 1.7, "grad_inner_TR": grad_inner, "grad_B_NR": grad_B}
    lora_backward(grad, inner, lora_B, **given)

    leaves = [leaf.double().requires_grad_() for leaf in (inner, lora_B)]
    y = 1.7 * leaves[0] @ leaves[1].t()
    true_inner, true_B = torch.autograd.grad(y, leaves, grad.double())
    size = true_inner.abs().max()
    assert (grad_inner.double() - true_inner).abs().max() <= tolerance * size
    # Summed in fp32 or wider whatever the dtype: what was there stays in it.
    assert (grad_B.double() - 1 - true_B).abs().max() <= min(tolerance, 1e-5) * size
