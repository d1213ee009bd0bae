from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.swiglu_triton import swiglu, swiglu_backward
from tests.kernels.on import DEVICE, DTYPES, rounding


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 172), (2, 2049)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64_rounded_once(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(shape[0], 2 * shape[1]) * 4).to(DEVICE, dtype)
    out = torch.empty(shape, dtype=dtype, device=DEVICE)
    swiglu(gate_up, out=out)
    gate, up = gate_up.double().chunk(2, dim=1)
    truth = gate * torch.sigmoid(gate) * up
    assert ((out.double() - truth).abs() <= rounding(dtype) * truth.abs() + 1e-7).all()


def test_rows_may_be_far_apart() -> None:
    torch.manual_seed(0)
    room = torch.randn(4, 40, device=DEVICE)
    wide = torch.full((4, 16), 7.0, device=DEVICE)
    swiglu(room[:, :20], out=wide[:, :10])
    close = torch.empty(4, 10, device=DEVICE)
    swiglu(room[:, :20].contiguous(), out=close)
    assert torch.equal(wide[:, :10], close)
    assert (wide[:, 10:] == 7).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 172), (2, 2049)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_equals_autograd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(shape[0], 2 * shape[1]) * 4).to(DEVICE, dtype)
    grad = torch.randn(shape).to(DEVICE, dtype)
    wide = gate_up.double().requires_grad_()
    gate, up = wide.chunk(2, dim=1)
    (expected,) = torch.autograd.grad(gate / (1 + (-gate).exp()) * up, wide, grad.double())
    activated = torch.empty_like(grad)
    swiglu(gate_up, out=activated)

    size = grad.abs().double().repeat(1, 2) * (1 + up.detach().abs().repeat(1, 2))
    swiglu_backward(grad, gate_up, out=grad)
    assert torch.equal(grad, activated)
    # The slope of silu is 0 at -1.278, between terms of about 0.2.
    noise = rounding(torch.float32) * size + 1e-7
    error = (gate_up.double() - expected).abs()
    assert (error <= rounding(dtype) * expected.abs() + noise).all()


@pytest.mark.filterwarnings("ignore:.*overflow encountered in exp")  # the interpreter's numpy
def test_gradient_of_extremes() -> None:
    gate_up = torch.tensor([[-200.0, 200.0, 0.0, 1.0, 2.0, 3.0]], device=DEVICE)
    grad = torch.ones(1, 3, device=DEVICE)
    swiglu_backward(grad, gate_up, out=grad)
    assert gate_up.tolist() == [[0.0, 2.0, 1.5, 0.0, 200.0, 0.0]]
    assert grad.tolist() == [[0.0, 400.0, 0.0]]


def test_rows_of_a_gradient_may_be_far_apart() -> None:
    torch.manual_seed(0)
    # [T, F + 16] and [T, 2F + 16], as inputs of products with an adapter are.
    rooms = [torch.full((5, width), torch.nan, device=DEVICE) for width in (48, 80, 48)]
    grad, gate_up, out = rooms[0][:, :32], rooms[1][:, :64], rooms[2][:, :32]
    grad.normal_()
    gate_up.normal_()
    given, close_grad, close = grad.clone(), grad.clone(), gate_up.clone()
    swiglu_backward(grad, gate_up, out=out)
    swiglu_backward(close_grad, close, out=close_grad)
    assert torch.equal(grad, given)
    assert torch.equal(gate_up, close)
    assert torch.equal(out, close_grad)
    for room, width in zip(rooms, (32, 64, 32), strict=True):
        assert room[:, width:].isnan().all()


def test_a_row_has_the_same_bits_among_any_rows() -> None:
    torch.manual_seed(0)
    gate_up, grad = torch.randn(7, 344, device=DEVICE), torch.randn(7, 172, device=DEVICE)
    some, some_grad = gate_up[2:3].clone(), grad[2:3].clone()
    swiglu_backward(grad, gate_up, out=grad)
    swiglu_backward(some_grad, some, out=some_grad)
    assert torch.equal(some, gate_up[2:3])
    assert torch.equal(some_grad, grad[2:3])
