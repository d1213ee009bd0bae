from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.qk_norm_rope import HeadNorms, qk_norm_rope, qk_norm_rope_backward
from fam_engine.kernels.rmsnorm import rmsnorm
from fam_engine.kernels.rope import rope_

EPS = 1e-6
# Tokens, query heads, key heads, width: 1 of each, an odd half, widths of models; as many keys as
# queries, fewer, none, and keys alone.
SHAPES = [
    (1, 1, 1, 2),
    (5, 3, 3, 10),
    (7, 4, 2, 16),
    (3, 14, 2, 64),
    (3, 4, 0, 128),
    (3, 0, 2, 128),
]


def tables(
    num_tokens: int, half: int, dtype: torch.dtype, *, stretch: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(num_tokens, half).double() * 10
    return (angles.cos() * stretch).to(dtype), (angles.sin() * stretch).to(dtype)


def some_norms(width: int, num_query_heads: int, dtype: torch.dtype) -> HeadNorms:
    q_norm, k_norm = (torch.randn(width).to(dtype) for _ in range(2))
    return HeadNorms(q_norm, k_norm, num_query_heads, EPS)


def written_out(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norms: HeadNorms | None
) -> torch.Tensor:
    """Give the equation as autograd can follow it, on complex numbers."""
    if norms is not None:
        is_query = torch.arange(x.shape[1]) < norms.num_query_heads
        weights = torch.where(is_query[:, None], norms.q_norm, norms.k_norm)
        x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weights
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.complex(cos, sin)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_norms_then_the_turn(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(70, 8, 16).to(dtype)
    cos, sin = tables(70, 8, torch.promote_types(dtype, torch.float32))
    norms = some_norms(16, 4, dtype)
    expected = qkv.clone()
    expected[:, :4] = rmsnorm(qkv[:, :4], norms.q_norm, eps=EPS)
    expected[:, 4:6] = rmsnorm(qkv[:, 4:6], norms.k_norm, eps=EPS)
    rope_(expected[:, :6], cos, sin)
    given, out = qkv.clone(), torch.empty_like(qkv[:, :6])
    qk_norm_rope(given[:, :6], cos, sin, norms=norms, out_TNd=out)
    assert torch.equal(given, qkv)
    assert torch.equal(out, expected[:, :6])
    heads = given[:, :6]
    qk_norm_rope(heads, cos, sin, norms=norms, out_TNd=heads)
    assert torch.equal(given, expected)


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_equation(shape: tuple[int, int, int, int], has_norms: bool) -> None:
    torch.manual_seed(0)
    num_tokens, queries, keys, width = shape
    x = torch.randn(num_tokens, queries + keys, width, dtype=torch.float64)
    cos, sin = tables(num_tokens, width // 2, torch.float64)
    norms = some_norms(width, queries, torch.float64) if has_norms else None
    expected = written_out(x, cos, sin, norms)
    qk_norm_rope(x, cos, sin, norms=norms, out_TNd=x)
    assert torch.allclose(x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_equals_autograd(shape: tuple[int, int, int, int], has_norms: bool) -> None:
    torch.manual_seed(0)
    num_tokens, queries, keys, width = shape
    x, grad = (
        torch.randn(num_tokens, queries + keys, width, dtype=torch.float64) for _ in range(2)
    )
    # YaRN stretches: the transpose of a turn is not its inverse then.
    cos, sin = tables(num_tokens, width // 2, torch.float64, stretch=1.3)
    norms = some_norms(width, queries, torch.float64) if has_norms else None
    x.requires_grad_()
    (expected,) = torch.autograd.grad(written_out(x, cos, sin, norms), x, grad)
    before = x.detach() if has_norms else None
    qk_norm_rope_backward(grad, before, cos, sin, norms=norms)
    assert torch.allclose(grad, expected, rtol=1e-10, atol=1e-10)


def test_gradient_in_bf16_is_rounded_once() -> None:
    torch.manual_seed(0)
    x, grad = (torch.randn(5, 6, 64).bfloat16() for _ in range(2))
    cos, sin = tables(5, 32, torch.float32)
    norms = some_norms(64, 4, torch.bfloat16)
    wide = grad.double()
    double = HeadNorms(norms.q_norm.double(), norms.k_norm.double(), 4, EPS)
    qk_norm_rope_backward(wide, x.double(), cos.double(), sin.double(), norms=double)
    qk_norm_rope_backward(grad, x, cos, sin, norms=norms)
    # Half a unit of bf16's last place, and fp32's noise in terms that may cancel.
    unit = 0.5 * torch.finfo(torch.bfloat16).eps
    assert ((grad.double() - wide).abs() <= unit * wide.abs() + 1e-5).all()
