from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.add_rmsnorm_triton import add_rmsnorm, add_rmsnorm_backward
from tests.kernels.on import DEVICE, DTYPES, rounding

EPS = 1e-5
# 1 value, a power of two, widths that fill no block, 896 of Qwen2.5.
SHAPES = [(1, 1), (7, 64), (3, 100), (5, 172), (3, 896)]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_addition_then_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    residual, delta = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    weight = normal(shape[1], dtype=dtype)
    total, given = residual + delta, delta.clone()
    out, rstd = torch.empty_like(residual), torch.empty(shape[0], device=DEVICE)
    add_rmsnorm(residual, delta, weight, eps=EPS, out=out, rstd=rstd)
    assert torch.equal(residual, total)
    assert torch.equal(delta, given)
    wide = total.double()
    scale = (wide.square().mean(-1) + EPS).rsqrt()
    expected = wide * scale[:, None] * weight.double()
    assert ((out.double() - expected).abs() <= rounding(dtype) * expected.abs() + 1e-7).all()
    assert ((rstd.double() - scale).abs() <= rounding(torch.float32) * scale).all()


def test_nothing_to_add_is_a_norm_of_the_sum() -> None:
    torch.manual_seed(0)
    residual, delta, weight = normal(5, 172), normal(5, 172), normal(172)
    out, again = torch.empty_like(residual), torch.empty_like(residual)
    add_rmsnorm(residual, delta, weight, eps=EPS, out=out)
    total = residual.clone()
    add_rmsnorm(residual, None, weight, eps=EPS, out=again)
    assert torch.equal(residual, total)
    assert torch.equal(again, out)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_equals_autograd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    residual, grad_out, above = (normal(*shape, dtype=dtype) for _ in range(3))
    weight = normal(shape[1], dtype=dtype)
    rstd = torch.empty(shape[0], device=DEVICE)
    add_rmsnorm(residual, None, weight, eps=EPS, out=torch.empty_like(residual), rstd=rstd)

    x = residual.double().requires_grad_()
    normed = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    (gradient,) = torch.autograd.grad(normed, x, grad_out.double())
    expected = gradient + above.double()
    add_rmsnorm_backward(grad_out, residual, weight, rstd, grad_residual=above)
    # Three terms that may cancel: each is as exact as its own size allows.
    scale = rstd.double()[:, None]
    g = grad_out.double() * weight.double()
    along = (g * x.detach() * scale).abs().mean(-1, keepdim=True)
    size = (g.abs() + x.detach().abs() * scale * along) * scale
    noise = rounding(torch.float32) * (size + expected.abs())
    assert ((above.double() - expected).abs() <= rounding(dtype) * expected.abs() + noise).all()


def apart(x: torch.Tensor, room: float) -> torch.Tensor:
    """Give x with its rows 16 values further apart, which hold `room`."""
    wide = torch.full((x.shape[0], x.shape[1] + 16), room, dtype=x.dtype, device=x.device)
    wide[:, :-16] = x
    return wide[:, :-16]


def test_rows_may_be_far_apart() -> None:
    torch.manual_seed(0)
    residual, delta, above, weight = normal(5, 160), normal(5, 160), normal(5, 160), normal(160)
    rows = [apart(x, torch.nan) for x in (residual, delta, above)]
    out, rstd, close = (
        torch.empty(5, 160, device=DEVICE),
        torch.empty(5, device=DEVICE),
        above.clone(),
    )
    wide = apart(out, 7.0)
    add_rmsnorm(rows[0], rows[1], weight, eps=EPS, out=wide)
    add_rmsnorm(residual, delta, weight, eps=EPS, out=out, rstd=rstd)
    assert torch.equal(rows[0], residual)
    assert torch.equal(wide, out)
    add_rmsnorm_backward(wide, rows[0], weight, rstd, grad_residual=rows[2])
    add_rmsnorm_backward(out, residual, weight, rstd, grad_residual=close)
    assert torch.equal(rows[2], close)
    for row in rows:
        assert row.as_strided((5, 16), row.stride(), 160).isnan().all()
    assert (wide.as_strided((5, 16), wide.stride(), 160) == 7).all()


@pytest.mark.parametrize("width", [64, 896])
def test_a_row_has_the_same_bits_among_any_rows(width: int) -> None:
    torch.manual_seed(0)
    tensors = [normal(9, width) for _ in range(4)]
    weight = normal(width)

    def both(rows: slice) -> list[torch.Tensor]:
        residual, delta, grad_out, above = (x[rows].clone() for x in tensors)
        out, rstd = torch.empty_like(residual), residual.new_empty(len(residual))
        add_rmsnorm(residual, delta, weight, eps=EPS, out=out, rstd=rstd)
        add_rmsnorm_backward(grad_out, residual, weight, rstd, grad_residual=above)
        return [residual, out, rstd, above]

    whole = both(slice(None))
    for rows in (slice(0, 1), slice(3, 4), slice(2, 9)):
        assert all(torch.equal(a, b[rows]) for a, b in zip(both(rows), whole, strict=True))


def test_extremes() -> None:
    # No row divides by 0, and a value too large for fp16's square is none for fp32's.
    residual = torch.tensor([[0.0] * 8, [6e4] * 8], device=DEVICE, dtype=torch.float16)
    weight, out = torch.ones(8, device=DEVICE, dtype=torch.float16), torch.empty_like(residual)
    add_rmsnorm(residual, None, weight, eps=1e-6, out=out)
    assert out.tolist() == [[0.0] * 8, [1.0] * 8]
