"""What holds of kernels for any shape and any numbers, tried with drawn ones; each shape a test names is elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fam_engine.kernels import linear_logprob_tiles_triton, linear_logprob_triton
from fam_engine.kernels.nf4_dequantize import nf4_dequantize as reference
from fam_engine.kernels.nf4_dequantize_triton import nf4_dequantize
from fam_engine.kernels.nf4_linear_triton import nf4_linear
from fam_engine.kernels.rmsnorm_triton import rmsnorm
from fam_engine.kernels.swiglu_triton import swiglu
from fam_engine.model.nf4 import quantize
from tests.kernels.on import DEVICE, DTYPES, rounding

# The same every time: these are tests of kernels, whose errors have bounds, and no search.
SETTINGS = settings(max_examples=12, deadline=None, derandomize=True, database=None)
SEEDS, DTYPE = st.integers(0, 2**31), st.sampled_from(DTYPES)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


@SETTINGS
@given(SEEDS, st.integers(1, 20), st.integers(1, 400), DTYPE, st.integers(-3, 3))
def test_a_normed_row_has_size_1_whatever_its_own(
    seed: int, num_rows: int, width: int, dtype: torch.dtype, exponent: int
) -> None:
    rows = drawn(seed, num_rows, width, dtype=dtype) * 2.0**exponent
    ones = torch.ones(width, dtype=dtype, device=DEVICE)
    normed = rmsnorm(rows, ones, eps=1e-12).double()
    assert ((normed.square().mean(1) - 1).abs() <= 3 * rounding(dtype)).all()
    assert torch.equal(normed, rmsnorm(2 * rows, ones, eps=4e-12).double())


@SETTINGS
@given(SEEDS, st.integers(1, 9), st.integers(1, 2100), DTYPE)
def test_an_activation_goes_with_what_is_up(
    seed: int, num_rows: int, width: int, dtype: torch.dtype
) -> None:
    gate_up = drawn(seed, num_rows, 2 * width, dtype=dtype)
    out, opposite = (torch.empty(num_rows, width, dtype=dtype, device=DEVICE) for _ in range(2))
    swiglu(gate_up, out=out)
    gate_up[:, width:].neg_()
    swiglu(gate_up, out=opposite)
    assert torch.equal(out, -opposite)


@pytest.mark.parametrize(
    "kernel", [linear_logprob_triton, linear_logprob_tiles_triton], ids=["fused", "tiles"]
)
@SETTINGS
@given(SEEDS, st.integers(2, 99), st.integers(1, 8), DTYPE)
def test_probabilities_of_all_tokens_sum_to_1_and_their_ranks_are_an_order(
    kernel: Any,  # noqa: ANN401
    seed: int,
    vocab_size: int,
    eighths: int,
    dtype: torch.dtype,
) -> None:
    width = 8 * eighths
    row, head_VD = (
        drawn(seed, 1, width, dtype=dtype),
        drawn(seed + 1, vocab_size, width, dtype=dtype),
    )
    tokens = torch.arange(vocab_size, device=DEVICE)
    facts = kernel.linear_logprob(row.expand(vocab_size, -1).contiguous(), head_VD, tokens)
    assert float(facts.logprob_R.double().exp().sum()) == pytest.approx(1, abs=2e-5)
    logits = (row.double() @ head_VD.double().T)[0]
    assert (facts.rank_R.cpu() == 1 + (logits > logits[:, None]).sum(1).cpu()).all()
    assert float(facts.entropy_R.max() - facts.entropy_R.min()) < 1e-5


@SETTINGS
@given(SEEDS, st.integers(1, 70), st.integers(1, 9), DTYPE)
def test_any_matrix_is_unpacked_to_the_reference_s_bits(
    seed: int, num_features: int, num_blocks: int, dtype: torch.dtype
) -> None:
    weight = quantize(drawn(seed, num_features, 64 * num_blocks).cpu()).to(DEVICE)
    ours, theirs = (torch.empty(weight.shape, dtype=dtype, device=DEVICE) for _ in range(2))
    assert torch.equal(nf4_dequantize([weight], out=ours), reference([weight], out=theirs))


@SETTINGS
@given(SEEDS, st.integers(1, 64), st.integers(1, 40), st.integers(1, 5), DTYPE, st.data())
def test_a_row_s_product_is_its_own_among_any_rows(
    seed: int,
    num_rows: int,
    num_features: int,
    num_blocks: int,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    weight = quantize(drawn(seed, num_features, 64 * num_blocks).cpu()).to(DEVICE)
    rows = drawn(seed + 1, num_rows, 64 * num_blocks, dtype=dtype)
    among = torch.empty(num_rows, num_features, dtype=dtype, device=DEVICE)
    nf4_linear(rows, [weight], out=among)
    place = data.draw(st.integers(0, num_rows - 1))
    alone = torch.empty(1, num_features, dtype=dtype, device=DEVICE)
    nf4_linear(rows[place : place + 1], [weight], out=alone)
    assert torch.equal(among[place : place + 1], alone)
