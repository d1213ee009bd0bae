from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.rope import rope_


def tables(num_tokens: int, half: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(num_tokens, half).double() * 10
    return angles.cos().to(dtype), angles.sin().to(dtype)


# One token, an odd half, more rows than a chunk (2**18 values) holds.
@pytest.mark.parametrize("shape", [(1, 1, 2), (65, 3, 10), (300, 16, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_a_turn_of_complex_numbers(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    half = shape[2] // 2
    cos, sin = tables(shape[0], half, torch.promote_types(dtype, torch.float32))
    number = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = number * torch.complex(cos.double(), sin.double())[:, None]
    truth = torch.cat((turned.real, turned.imag), dim=-1)
    rope_(x, cos, sin)
    unit = torch.finfo(dtype).eps * (0.51 if dtype == torch.bfloat16 else 2)
    # Relative to the pair's length: a turn may cancel.
    length = number.abs().repeat(1, 1, 2)
    assert ((x.double() - truth).abs() <= unit * length).all()


def test_only_the_given_heads_turn() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(70, 6, 16)
    before = qkv.clone()
    cos, sin = tables(70, 8, torch.float32)
    rope_(qkv[:, :4], cos, sin)
    assert torch.equal(qkv[:, 4:], before[:, 4:])
    assert (qkv[:, :4] != before[:, :4]).any(-1).all()
    alone = before[:, 2:3].clone()
    rope_(alone, cos, sin)
    assert torch.equal(qkv[:, 2:3], alone)
