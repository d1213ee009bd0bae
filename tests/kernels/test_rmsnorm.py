from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.rmsnorm import rmsnorm


# 1 row, odd and vector-sized widths, more rows than a chunk (2**18 values) holds, heads.
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 172), (700, 896), (65, 3, 40)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_float64_rounded_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype)
    scale = (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    truth = x.double() * scale * weight.double()
    out = rmsnorm(x, weight, eps=1e-5)
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert out.is_contiguous()
    # Half a unit of bf16's last place plus fp32's noise; 4 operations in fp32, fp64.
    unit = torch.finfo(dtype).eps * (0.501 if dtype == torch.bfloat16 else 4)
    assert ((out.double() - truth).abs() <= unit * truth.abs()).all()


def test_a_view_of_heads_is_read_where_it_lies() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(70, 6, 16)
    weight = torch.randn(16)
    assert torch.equal(
        rmsnorm(qkv[:, 1:4], weight, eps=1e-6),
        rmsnorm(qkv[:, 1:4].contiguous(), weight, eps=1e-6),
    )


def test_zeros_stay_zeros() -> None:
    assert not rmsnorm(torch.zeros(2, 8), torch.ones(8), eps=1e-6).any()
