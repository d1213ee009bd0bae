from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fam_engine.kernels import qk_norm_rope as reference
from fam_engine.kernels.qk_norm_rope import HeadNorms
from fam_engine.kernels.qk_norm_rope_triton import qk_norm_rope, qk_norm_rope_backward
from tests.kernels.on import DEVICE, DTYPES, rounding

EPS = 1e-6
# Tokens, query heads, key heads, width: 1 of each, odd halves, widths of models; more heads than a
# block holds (8 of 128, 64 of 16) and no multiple of it; no keys, and keys alone.
SHAPES = [
    (1, 1, 1, 2),
    (3, 3, 1, 10),
    (3, 66, 3, 16),
    (5, 14, 2, 64),
    (3, 9, 3, 128),
    (3, 4, 0, 50),
    (3, 0, 2, 64),
]


def tables(num_tokens: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(num_tokens, width // 2).double() * 10
    return angles.cos().float().to(DEVICE), angles.sin().float().to(DEVICE)


def some_norms(width: int, num_query_heads: int, dtype: torch.dtype) -> HeadNorms:
    q_norm, k_norm = (torch.randn(width).to(DEVICE, dtype) for _ in range(2))
    return HeadNorms(q_norm, k_norm, num_query_heads, EPS)


def doubled(norms: HeadNorms | None) -> HeadNorms | None:
    """Give the norms in float64."""
    if norms is None:
        return None
    return replace(norms, q_norm=norms.q_norm.double(), k_norm=norms.k_norm.double())


def heads(shape: tuple[int, int, int, int], dtype: torch.dtype) -> torch.Tensor:
    num_tokens, queries, keys, width = shape
    return torch.randn(num_tokens, queries + keys, width).to(DEVICE, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_norms_bits_are_the_references(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, (cos, sin) = heads(shape, dtype), tables(shape[0], shape[3])
    expected = x.clone()
    reference.qk_norm_rope(expected, cos, sin, norms=None, out_TNd=expected)
    qk_norm_rope(x, cos, sin, norms=None, out_TNd=x)
    assert torch.equal(x, expected)
    reference.qk_norm_rope_backward(expected, None, cos, sin, norms=None)
    qk_norm_rope_backward(x, None, cos, sin, norms=None)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_rounded_before_the_turn(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, (cos, sin) = heads(shape, dtype), tables(shape[0], shape[3])
    norms = some_norms(shape[3], shape[1], dtype)
    exact, stepwise = torch.empty_like(x, dtype=torch.float64), torch.empty_like(x)
    reference.qk_norm_rope(
        x.double(), cos.double(), sin.double(), norms=doubled(norms), out_TNd=exact
    )
    reference.qk_norm_rope(x, cos, sin, norms=norms, out_TNd=stepwise)
    qk_norm_rope(x, cos, sin, norms=norms, out_TNd=x)
    # Two roundings, each relative to the pair's length: a turn may cancel.
    length = torch.hypot(*exact.chunk(2, dim=-1)).repeat(1, 1, 2)
    assert ((x.double() - exact).abs() <= 2 * rounding(dtype) * length + 1e-7).all()
    if dtype != torch.float32:  # a norm's last bit of fp32 seldom survives its rounding
        assert (x != stepwise).float().mean() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_equals_float64(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, grad, (cos, sin) = heads(shape, dtype), heads(shape, dtype), tables(shape[0], shape[3])
    norms = some_norms(shape[3], shape[1], dtype)
    exact, before = grad.double(), x.clone()
    reference.qk_norm_rope_backward(
        exact, x.double(), cos.double(), sin.double(), norms=doubled(norms)
    )
    given = grad.double().norm(dim=-1, keepdim=True)
    qk_norm_rope_backward(grad, x, cos, sin, norms=norms)
    # Terms may cancel: each is as exact as the head's gradient is large.
    rms = (x.double().square().mean(-1, keepdim=True) + EPS).sqrt()
    noise = rounding(torch.float32) * 8 * given / rms
    assert ((grad.double() - exact).abs() <= rounding(dtype) * exact.abs() + noise).all()
    assert torch.equal(x, before)


def test_values_and_what_lies_beyond_are_untouched() -> None:
    torch.manual_seed(0)
    # 4 queries, 2 keys, 2 values of 16, then 16 more in each row.
    buffers = [torch.full((5, 144), torch.nan, device=DEVICE) for _ in range(3)]
    x, grad, out = (buffer[:, :96].unflatten(1, (6, 16)) for buffer in buffers)
    x.normal_()
    grad.normal_()
    norms, (cos, sin) = some_norms(16, 4, torch.float32), tables(5, 16)
    close, close_grad = x.clone(), grad.clone()
    qk_norm_rope_backward(grad, x, cos, sin, norms=norms)
    qk_norm_rope_backward(close_grad, close, cos, sin, norms=norms)
    qk_norm_rope(x, cos, sin, norms=norms, out_TNd=out)
    qk_norm_rope(close, cos, sin, norms=norms, out_TNd=close)
    assert torch.equal(out, close)
    assert torch.equal(grad, close_grad)
    for buffer in buffers:
        assert buffer[:, 96:].isnan().all()


@pytest.mark.parametrize("has_norms", [False, True])
def test_a_head_has_the_same_bits_whatever_it_is_given_with(has_norms: bool) -> None:
    torch.manual_seed(0)
    x, grad = heads((5, 9, 3, 128), torch.float32), heads((5, 9, 3, 128), torch.float32)
    cos, sin = tables(5, 128)
    norms = some_norms(128, 9, torch.float32) if has_norms else None

    def both(tokens: slice, part: slice, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
        of_part = replace(norms, num_query_heads=queries) if norms else None
        some, gradient = x[tokens, part].clone(), grad[tokens, part].clone()
        before = some.clone() if has_norms else None
        some_tables = cos[tokens], sin[tokens]
        qk_norm_rope_backward(gradient, before, *some_tables, norms=of_part)
        qk_norm_rope(some, *some_tables, norms=of_part, out_TNd=some)
        return some, gradient

    everything = slice(None)
    whole = both(everything, everything, 9)
    for tokens, part, queries in (
        (slice(3, 4), everything, 9),
        (everything, slice(9), 9),  # queries alone, as in the last layer
        (everything, slice(9, 12), 0),
        (slice(1, 3), slice(4, 5), 1),
    ):
        for one, all_of_it in zip(both(tokens, part, queries), whole, strict=True):
            assert torch.equal(one, all_of_it[tokens, part])
