from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import nf4_quantize as reference
from fam_engine.kernels.nf4_quantize_triton import nf4_quantize
from tests.kernels.nf4_values import hard_blocks
from tests.kernels.on import DEVICE, DTYPES


def assert_is_that_of_the_reference(weight: torch.Tensor) -> None:
    expected = reference.nf4_quantize(weight)
    found = nf4_quantize(weight.to(DEVICE))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)


# A block; blocks across rows; less and more than a program's 32 blocks.
@pytest.mark.parametrize("shape", [(1, 64), (64, 3), (16, 172), (31, 64), (65, 128)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-3, 1, shape[0])[:, None]
    assert_is_that_of_the_reference(weight.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_where_a_bit_decides(dtype: torch.dtype) -> None:
    weight = hard_blocks(dtype)
    assert_is_that_of_the_reference(weight)
    assert_is_that_of_the_reference(-weight)


def test_a_block_has_the_same_bits_among_any_blocks() -> None:
    torch.manual_seed(0)
    weight = torch.randn(70, 64, device=DEVICE)
    packed, absmax = nf4_quantize(weight)
    some_packed, some_absmax = nf4_quantize(weight[41:44])
    assert torch.equal(some_packed, packed[41 * 32 : 44 * 32])
    assert torch.equal(some_absmax, absmax[41:44])


def test_nothing_is_written_beyond_the_last_block() -> None:
    room = torch.full((64, 64), 3.0, device=DEVICE)
    packed, absmax = nf4_quantize(room[:5])
    assert (packed.numel(), absmax.numel()) == (160, 5)
    assert (absmax == 3).all()
    assert (packed == 0xFF).all()
