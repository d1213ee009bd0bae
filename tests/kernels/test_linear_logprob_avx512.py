"""The fused CPU kernel against the reference and a dense fp64 softmax; bits; what it refuses."""

from __future__ import annotations

import pytest
import torch

from fam_engine._rust_tokenize import linear_logprob_bf16, supports_bf16_products
from fam_engine.kernels import linear_logprob as reference
from fam_engine.kernels import linear_logprob_avx512 as kernel

pytestmark = pytest.mark.skipif(not supports_bf16_products(), reason="needs AVX512-BF16")

NAMES = ("logprob_R", "rank_R", "entropy_R", "margin_R")


def make(
    num_rows: int, vocab_size: int, width: int, spread: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(vocab_size + width)
    hidden_RD = torch.randn(num_rows, width).bfloat16()
    head_VD = (torch.randn(vocab_size, width) * spread / width**0.5).bfloat16()
    return hidden_RD, head_VD, torch.randint(0, vocab_size, (num_rows,))


# 48 columns are a panel, 960 a tile; 1 is nothing but the target.
@pytest.mark.parametrize("vocab_size", [1, 5, 48, 49, 960, 961, 5000])
@pytest.mark.parametrize("width", [2, 172, 896])
def test_facts_are_as_exact_as_the_reference_s(vocab_size: int, width: int) -> None:
    hidden_RD, head_VD, targets_R = make(67, vocab_size, width)
    ours = kernel.linear_logprob(hidden_RD, head_VD, targets_R)
    truth = reference.linear_logprob(hidden_RD[:64].double(), head_VD.double(), targets_R[:64])
    size = max(1.0, float((hidden_RD.float() @ head_VD.float().T).abs().max()))
    for name in NAMES if vocab_size > 1 else ("logprob_R", "rank_R", "entropy_R"):
        difference = getattr(ours, name)[:64].double() - getattr(truth, name).double()
        assert difference.abs().max() <= (0 if name == "rank_R" else 2e-6 * size), name


@pytest.mark.parametrize("spread", [0.0, 1e-3, 60.0, 2000.0])
def test_flat_and_extreme_logits(spread: float) -> None:
    hidden_RD, head_VD, targets_R = make(64, 3000, 48, spread)
    ours = kernel.linear_logprob(hidden_RD, head_VD, targets_R)
    truth = reference.linear_logprob(hidden_RD.double(), head_VD.double(), targets_R)
    size = max(1.0, float((hidden_RD.float() @ head_VD.float().T).abs().max()))
    assert (ours.logprob_R - truth.logprob_R).abs().max() <= 2e-6 * size
    assert (ours.entropy_R - truth.entropy_R).abs().max() <= 1e-5 * size
    assert (ours.margin_R - truth.margin_R).abs().max() <= 2e-6 * size


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_bits_depend_on_nothing_but_the_row(num_threads: int) -> None:
    hidden_RD, head_VD, targets_R = make(192, 2500, 48)
    torch.set_num_threads(1)
    alone = kernel.linear_logprob(hidden_RD, head_VD, targets_R)
    torch.set_num_threads(num_threads)
    try:
        order = torch.randperm(192)
        shuffled = kernel.linear_logprob(hidden_RD[order], head_VD, targets_R[order])
        few = kernel.linear_logprob(hidden_RD[64:71], head_VD, targets_R[64:71])
    finally:
        torch.set_num_threads(1)
    for name in NAMES:
        assert torch.equal(getattr(alone, name)[order], getattr(shuffled, name)), name
        assert torch.equal(getattr(alone, name)[64:71], getattr(few, name)), name


def test_tokens_with_equal_weights_do_not_count_against_the_target() -> None:
    hidden_RD, head_VD, _ = make(64, 4000, 48)
    head_VD[:] = head_VD[:1]
    facts = kernel.linear_logprob(hidden_RD, head_VD, torch.arange(64) * 61)
    assert (facts.rank_R == 1).all()
    assert (facts.margin_R == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_seen(value: float) -> None:
    hidden_RD, head_VD, targets_R = make(64, 500, 48)
    hidden_RD[5, 7] = value
    facts = kernel.linear_logprob(hidden_RD, head_VD, targets_R)
    assert (~facts.logprob_R.isfinite()).nonzero().tolist() == [[5]]


def test_what_does_not_fit_is_refused() -> None:
    hidden, head = torch.zeros(8 * 6, dtype=torch.int16), torch.zeros(9 * 6, dtype=torch.int16)

    def call(num_targets: int = 8, target: int = 0, width: int = 6) -> None:
        targets = torch.full((num_targets,), target)
        linear_logprob_bf16(
            hidden.numpy(), head.numpy(), targets.numpy(), width=width, num_threads=1
        )

    call()
    for arguments, message in (
        ({"num_targets": 7}, "do not fit"),
        ({"target": 9}, "target 9 in a vocabulary of 9"),
        ({"width": 3}, "the width is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**arguments)
