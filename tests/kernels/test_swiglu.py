from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.swiglu import swiglu, swiglu_backward


# One value, odd widths, 172 of stories260K, wider than a thread's share (2**17 values), many rows.
@pytest.mark.parametrize("shape", [(1, 1), (64, 7), (64, 172), (2, 140_000), (300, 896)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_float64_rounded_once(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(shape[0], 2 * shape[1]) * 4).to(dtype)
    out = torch.empty(shape, dtype=dtype)
    swiglu(gate_up, out=out)
    gate, up = gate_up.double().chunk(2, dim=1)
    truth = gate * torch.sigmoid(gate) * up
    unit = torch.finfo(dtype).eps * (0.501 if dtype == torch.bfloat16 else 6)
    assert ((out.double() - truth).abs() <= unit * truth.abs() + 1e-30).all()


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [100, 172, 896])
def test_a_row_has_the_same_bits_among_any_rows(width: int, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    try:
        torch.manual_seed(0)
        gate_up = torch.randn(1088, 2 * width) * 3
        whole = torch.empty(1088, width)
        swiglu(gate_up, out=whole)
        for start, stop in ((0, 64), (64, 512), (448, 1088), (1000, 1007)):
            part = torch.empty(stop - start, width)
            swiglu(gate_up[start:stop], out=part)
            assert torch.equal(part, whole[start:stop])
    finally:
        torch.set_num_threads(1)


def test_extremes() -> None:
    gate_up = torch.tensor([[-200.0, 200.0, 0.0, -torch.inf, 1.0, 1.0, 1.0, 0.0]])
    out = torch.empty(1, 4)
    swiglu(gate_up, out=out)
    assert out[0, :3].tolist() == [0.0, 200.0, 0.0]
    assert out[0, 3].isnan()  # what transformers gives too: -inf * 0


# 1 value, odd rows and widths, 172 of stories260K.
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 172), (7, 896)])
def test_gradient_equals_autograd(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(shape[0], 2 * shape[1], dtype=torch.float64) * 4).requires_grad_()
    grad = torch.randn(shape, dtype=torch.float64)
    gate, up = gate_up.chunk(2, dim=1)
    activated = gate / (1 + (-gate).exp()) * up
    (expected,) = torch.autograd.grad(activated, gate_up, grad)
    gradient = gate_up.detach().clone()
    swiglu_backward(grad, gradient, out=grad)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-10)
    assert torch.allclose(grad, activated.detach(), rtol=1e-10, atol=1e-10)


def test_gradient_in_bf16_is_rounded_once_and_makes_the_activation_again() -> None:
    torch.manual_seed(0)
    gate_up, grad = (torch.randn(5, 344) * 4).bfloat16(), torch.randn(5, 172).bfloat16()
    wide, activated = gate_up.double(), torch.empty_like(grad)
    swiglu_backward(grad.double(), wide, out=torch.empty(5, 172, dtype=torch.float64))
    swiglu(gate_up, out=activated)
    given, out = grad.clone(), torch.empty_like(grad)
    swiglu_backward(grad, gate_up, out=out)
    assert torch.equal(out, activated)
    assert torch.equal(grad, given)
    unit = 0.501 * torch.finfo(torch.bfloat16).eps
    # The slope of silu is 0 at -1.278, between terms of about 0.2.
    assert ((gate_up.double() - wide).abs() <= unit * wide.abs() + 1e-5).all()


def test_gradient_of_extremes() -> None:
    gate_up = torch.tensor([[-200.0, 200.0, 0.0, 1.0, 2.0, 3.0]])
    grad = torch.ones(1, 3)
    swiglu_backward(grad, gate_up, out=grad)
    assert gate_up.tolist() == [[0.0, 2.0, 1.5, 0.0, 200.0, 0.0]]
    assert grad.tolist() == [[0.0, 400.0, 0.0]]
