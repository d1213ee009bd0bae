from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.rmsnorm_triton import rmsnorm
from tests.kernels.on import DEVICE, DTYPES, rounding

EPS = 1e-5


def truth(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


# 1 value; rows that fill no block: 16 and 4 a program; 896 of Qwen2.5; heads, as many as a block and not.
@pytest.mark.parametrize(
    "shape", [(1, 1), (19, 64), (3, 100), (5, 172), (3, 896), (3, 2, 128), (5, 3, 16)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64_rounded_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3).to(DEVICE, dtype)
    weight = torch.randn(shape[-1]).to(DEVICE, dtype)
    out = rmsnorm(x, weight, eps=EPS)
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert out.is_contiguous()
    expected = truth(x, weight)
    assert ((out.double() - expected).abs() <= rounding(dtype) * expected.abs() + 1e-7).all()


def test_heads_and_rows_may_be_far_apart() -> None:
    torch.manual_seed(0)
    # What is not asked for is not read. Distances of 16 values: a GPU sums in another order otherwise.
    room = torch.full((7, 6, 32), torch.nan, device=DEVICE)
    weight = torch.randn(16, device=DEVICE)
    heads, rows = room[:, 1:4, :16], room[:, 1, :16]
    heads.normal_()
    assert torch.equal(
        rmsnorm(heads, weight, eps=EPS), rmsnorm(heads.contiguous(), weight, eps=EPS)
    )
    assert torch.equal(rmsnorm(rows, weight, eps=EPS), rmsnorm(rows.contiguous(), weight, eps=EPS))


@pytest.mark.parametrize("width", [100, 896])
def test_a_row_has_the_same_bits_among_any_rows(width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(21, width, device=DEVICE)
    weight = torch.randn(width, device=DEVICE)
    whole = rmsnorm(x, weight, eps=EPS)
    for start, stop in ((0, 1), (3, 4), (5, 16), (20, 21)):
        assert torch.equal(rmsnorm(x[start:stop], weight, eps=EPS), whole[start:stop])


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(2, 8, device=DEVICE)
    assert not rmsnorm(x, torch.ones(8, device=DEVICE), eps=1e-6).any()
