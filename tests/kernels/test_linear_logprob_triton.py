"""Both Triton implementations against a dense fp64 softmax and the reference; bits; what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, log1p

import pytest
import torch
from torch.nn import functional

from fam_engine.kernels import linear_logprob as reference
from fam_engine.kernels import linear_logprob_tiles_triton as tiles
from fam_engine.kernels import linear_logprob_triton as fused
from fam_engine.kernels.linear_logprob import LinearLogprobs
from tests.kernels.on import DEVICE, DTYPES

Facts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], LinearLogprobs]
# Of the largest logit: what a sum over up to 128 products may be off, and over 896. A GPU's matrix units cut every 16
# products' sum off to fp32 instead of rounding it: 56 times half of 2^-23 of what has come together, always towards 0.
ERROR, ERROR_896 = (1e-6 if DEVICE.type == "cpu" else 4e-6), 1e-5
NAMES = ("logprob_R", "rank_R", "entropy_R", "margin_R")
FLOATS = ("logprob_R", "entropy_R", "margin_R")


@pytest.fixture(params=["pointers", "tma", "tiles"])
def facts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Facts:
    """One of the two, the first in both its ways; interpreted, with tiles and parts so small that there are several."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(fused, "_MAX_PARTS", 2)
        monkeypatch.setattr(tiles, "ROW_TILE", 16)
        monkeypatch.setattr(tiles, "VOCAB_TILE", 256)
    if request.param == "tiles":
        return tiles.linear_logprob
    shipped, has_tma = fused._blocks, request.param == "tma"
    monkeypatch.setattr(fused, "_blocks", lambda *of: shipped(*of)._replace(has_tma=has_tma))
    return fused.linear_logprob


def make(
    num_rows: int, width: int, vocab_size: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(vocab_size + width)
    hidden_RD = torch.randn(num_rows, width).to(DEVICE, dtype)
    head_VD = (torch.randn(vocab_size, width) * 3 / width**0.5).to(DEVICE, dtype)
    return hidden_RD, head_VD, torch.randint(0, vocab_size, (num_rows,)).to(DEVICE)


def dense(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> LinearLogprobs:
    """Give the facts out of all logits, in fp64."""
    logits_RV = hidden_RD.double() @ head_VD.double().T
    own_R1 = logits_RV.gather(1, targets_R[:, None])
    others_RV = logits_RV.scatter(1, targets_R[:, None], -torch.inf)
    logprobs_RV = logits_RV.log_softmax(1)
    return LinearLogprobs(
        logprob_R=-functional.softplus(others_RV.logsumexp(1) - own_R1[:, 0], threshold=1000),
        rank_R=(1 + (others_RV > own_R1).sum(1)).clamp(max=100).int(),
        entropy_R=-(logprobs_RV.exp() * logprobs_RV.clamp(min=-1e9)).sum(1),
        margin_R=own_R1[:, 0] - others_RV.amax(1),
    )


def size_of(hidden_RD: torch.Tensor, head_VD: torch.Tensor) -> float:
    return max(1.0, float((hidden_RD.float() @ head_VD.float().T).abs().max()))


# [R, D, V]. R: one row, a few, a second tile of 128. D: less than a block of 64, one, two. V: a tile of 128, two, five.
SHAPES = [(1, 16, 7), (5, 48, 130), (33, 64, 600), (64, 24, 130), (130, 128, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_facts_are_exact(facts: Facts, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    hidden_RD, head_VD, targets_R = make(*shape, dtype)
    ours = facts(hidden_RD, head_VD, targets_R)
    truth = dense(hidden_RD, head_VD, targets_R)
    size = size_of(hidden_RD, head_VD)
    assert torch.equal(ours.rank_R, truth.rank_R)
    for name in FLOATS:
        difference = getattr(ours, name) - getattr(truth, name)
        assert difference.abs().max() <= ERROR * size, name


# Without another token; fewer than a tile; two tiles.
@pytest.mark.parametrize("vocab_size", [1, 7, 300])
def test_facts_are_those_of_the_reference(facts: Facts, vocab_size: int) -> None:
    hidden_RD, head_VD, targets_R = make(5, 48, vocab_size)
    ours = facts(hidden_RD, head_VD, targets_R)
    theirs = reference.linear_logprob(hidden_RD, head_VD, targets_R)
    assert torch.equal(ours.rank_R, theirs.rank_R)
    for name in FLOATS:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nearly_certain_target_keeps_its_digits(facts: Facts, dtype: torch.dtype) -> None:
    margins = [10, 40, 80]
    hidden_RD, head_VD = torch.zeros(3, 16), torch.zeros(600, 16)
    hidden_RD[:, 1] = torch.tensor(margins)
    head_VD[300, 1] = 1.0
    targets_R = torch.full((3,), 300)
    ours = facts(hidden_RD.to(DEVICE, dtype), head_VD.to(DEVICE, dtype), targets_R.to(DEVICE))
    odds = [599 * exp(-margin) for margin in margins]
    logprobs = [-log1p(x) for x in odds]
    entropies = [(log1p(x) + x * (log1p(x) - log(x) + log(599))) / (1 + x) for x in odds]
    assert ours.margin_R.tolist() == margins
    assert ours.logprob_R.tolist() == pytest.approx(logprobs, rel=1e-6, abs=0)
    assert ours.entropy_R.tolist() == pytest.approx(entropies, rel=1e-6, abs=0)


def test_logits_that_are_all_equal(facts: Facts) -> None:
    hidden_RD, head_VD = torch.zeros(2, 16), torch.ones(600, 16)
    ours = facts(hidden_RD.to(DEVICE), head_VD.to(DEVICE), torch.tensor([0, 599]).to(DEVICE))
    assert ours.logprob_R.tolist() == pytest.approx([-log(600)] * 2, rel=1e-14)
    assert ours.entropy_R.tolist() == pytest.approx([log(600)] * 2, rel=1e-14)
    assert ours.rank_R.tolist() == [1, 1]
    assert ours.margin_R.tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("low", [-1e30, -1e8])
def test_tokens_far_below_have_no_weight(facts: Facts, low: float) -> None:
    """Logits of -inf and of -1e38, in tiles and parts before likely ones and after."""
    hidden_RD, head_VD, targets_R = make(5, 16, 600)
    hidden_RD[:, 0], head_VD[:, 0] = 1e30, 0.0
    token = torch.arange(600, device=DEVICE)
    likely = (token % 400 >= 100) & (token % 400 < 120)
    targets_R = 100 + targets_R % 20
    expected = dense(hidden_RD, head_VD[likely], targets_R - 100)
    head_VD[~likely, 0] = low
    ours = facts(hidden_RD, head_VD, targets_R)
    assert torch.equal(ours.rank_R, expected.rank_R)
    for name in FLOATS:
        torch.testing.assert_close(
            getattr(ours, name), getattr(expected, name), rtol=1e-6, atol=1e-5
        )


def test_ranks_end_at_100(facts: Facts) -> None:
    hidden_RD, head_VD = torch.ones(3, 16), torch.arange(600)[:, None].expand(600, 16) / 8
    targets_R = torch.tensor([0, 500, 501])
    ours = facts(hidden_RD.to(DEVICE), head_VD.contiguous().to(DEVICE), targets_R.to(DEVICE))
    assert ours.rank_R.tolist() == [100, 100, 99]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_with_equal_weights_do_not_count_as_larger(facts: Facts, dtype: torch.dtype) -> None:
    """In a target's own tile, in another one and in another part."""
    hidden_RD, head_VD, _ = make(11, 168, 600, dtype)
    head_VD[:] = head_VD[:1]
    targets_R = torch.arange(11, device=DEVICE) * 59
    ours = facts(hidden_RD, head_VD, targets_R)
    assert (ours.rank_R == 1).all()
    assert (ours.margin_R == 0).all()
    head_VD[299] = head_VD[0] * 2
    larger_R = hidden_RD.double() @ head_VD[0].double() > 0
    assert torch.equal(facts(hidden_RD, head_VD, targets_R).rank_R == 2, larger_R)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_on_nothing_but_the_row(facts: Facts, dtype: torch.dtype) -> None:
    hidden_RD, head_VD, targets_R = make(20, 48, 600, dtype)
    together = facts(hidden_RD, head_VD, targets_R)
    order = torch.randperm(20, device=DEVICE)
    shuffled = facts(hidden_RD[order], head_VD, targets_R[order])
    alone = facts(hidden_RD[17:18], head_VD, targets_R[17:18])
    for name in NAMES:
        assert torch.equal(getattr(together, name)[order], getattr(shuffled, name)), name
        assert torch.equal(getattr(together, name)[17:18], getattr(alone, name)), name


@pytest.mark.filterwarnings("ignore:(invalid value|All-NaN slice) encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_spoils_no_other(facts: Facts, value: float) -> None:
    hidden_RD, head_VD, targets_R = make(20, 48, 300)
    clean = facts(hidden_RD, head_VD, targets_R)
    hidden_RD[5, 7] = value
    ours = facts(hidden_RD, head_VD, targets_R)
    others = torch.arange(20, device=DEVICE) != 5
    for name in FLOATS:
        assert getattr(ours, name)[5].isnan(), name
    for name in NAMES:
        assert torch.equal(getattr(ours, name)[others], getattr(clean, name)[others]), name


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [1e30, -1e30])
def test_a_target_beyond_float32_has_no_facts(facts: Facts, value: float) -> None:
    hidden_RD, head_VD, targets_R = make(5, 48, 300)
    hidden_RD[2, 0], head_VD[:, 0], targets_R[2] = 1e30, 0.0, 7
    head_VD[7, 0] = value
    ours = facts(hidden_RD, head_VD, targets_R)
    for name in FLOATS:
        assert getattr(ours, name).isnan().tolist() == [False, False, True, False, False], name


def test_a_token_whose_weights_are_not_numbers_spoils_every_row(facts: Facts) -> None:
    hidden_RD, head_VD, _ = make(5, 48, 300)
    head_VD[290] = torch.nan
    targets_R = torch.tensor([0, 1, 289, 290, 299], device=DEVICE)
    ours = facts(hidden_RD, head_VD, targets_R)
    for name in FLOATS:
        assert getattr(ours, name).isnan().all(), name


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a device-side assertion ends all work there")
@pytest.mark.parametrize("target", [300, -1])
def test_ids_outside_the_vocabulary_are_refused(facts: Facts, target: int) -> None:
    hidden_RD, head_VD, targets_R = make(5, 48, 300)
    targets_R[3] = target
    with pytest.raises(IndexError):
        facts(hidden_RD, head_VD, targets_R)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("num_rows", [1000, 1100])
def test_shipped_tiles_keep_bits_and_ties(facts: Facts, num_rows: int) -> None:
    """Parts, row tiles and a last tile as real models have them: what cuBLAS does there shows nowhere else."""
    hidden_RD, head_VD, targets_R = make(num_rows, 896, 40_000, torch.bfloat16)
    head_VD[20_000:] = head_VD[:20_000]
    together = facts(hidden_RD, head_VD, targets_R)
    twins = facts(hidden_RD, head_VD, (targets_R + 20_000) % 40_000)
    alone = facts(hidden_RD[990:991], head_VD, targets_R[990:991])
    truth = dense(hidden_RD, head_VD, targets_R)
    for name in NAMES:
        assert torch.equal(getattr(together, name)[990:991], getattr(alone, name)), name
    assert torch.equal(together.rank_R, twins.rank_R)
    assert (together.margin_R <= 0).all()
    size = size_of(hidden_RD, head_VD)
    for name in FLOATS:
        difference = getattr(together, name) - getattr(truth, name)
        assert difference.abs().max() <= ERROR_896 * size, name
