from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fam_engine.kernels.nf4_quantize import nf4_quantize
from fam_engine.model.nf4 import bitsandbytes_functional
from tests.kernels.nf4_values import hard_blocks

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One value; less than a block; a block; a short last block, even and odd; more blocks than a chunk.
SHAPES = [(1, 1), (3, 5), (1, 64), (7, 172), (13, 77), (2051, 64), (2049, 67)]


def assert_is_that_of_bitsandbytes(weight: torch.Tensor) -> None:
    packed, state = bitsandbytes_functional().quantize_4bit(weight, blocksize=64, quant_type="nf4")
    found_packed, found_absmax = nf4_quantize(weight)
    assert torch.equal(found_absmax, state.absmax)
    assert torch.equal(found_packed, packed.view(-1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-3, 1, shape[0])[:, None]
    assert_is_that_of_bitsandbytes(weight.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_bitsandbytes_where_a_bit_decides(dtype: torch.dtype) -> None:
    weight = hard_blocks(dtype)
    assert_is_that_of_bitsandbytes(weight)
    assert_is_that_of_bitsandbytes(-weight)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=130)
)
@settings(max_examples=200, deadline=None)
def test_equals_bitsandbytes_whatever_the_values(values: list[float]) -> None:
    assert_is_that_of_bitsandbytes(torch.tensor([values], dtype=torch.float32))


def test_ties_get_the_lower_index() -> None:
    weight = torch.zeros(1, 64)
    # 0.07958... / 2 is between the table's 0 (index 7) and 0.07958... (index 8).
    weight[0, :3] = torch.tensor([1.0, 0.07958029955625534 / 2, 0.07958029955625534 / 2 + 1e-8])
    packed, absmax = nf4_quantize(weight)
    assert absmax.tolist() == [1.0]
    assert packed[:2].tolist() == [(15 << 4) | 7, (8 << 4) | 7]
