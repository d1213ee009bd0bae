"""Formulas against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import pytest

from fam_engine.measure.metrics import ifd_scores, score_record
from fam_engine.measure.scores import Score


@dataclass(frozen=True)
class Facts:
    """The shape of `TokenFacts`, so that these tests need no other module."""

    logprobs: np.ndarray
    ranks: np.ndarray
    entropies: np.ndarray
    margins: np.ndarray

    def slice(self, start: int, stop: int) -> Facts:
        return Facts(*(getattr(self, field.name)[start:stop] for field in fields(self)))


def make_facts(probabilities: list[float], ranks: list[int]) -> Facts:
    count = len(probabilities)
    return Facts(
        np.log(np.array(probabilities, np.float64)),
        np.array(ranks, np.int32),
        np.arange(count, dtype=np.float64),
        np.full(count, -0.5),
    )


def score(facts: Facts, num_response_tokens: int, num_bytes: int = 8) -> Score:
    return score_record(
        facts,
        num_prompt_tokens=3,
        num_response_tokens=num_response_tokens,
        num_bytes=num_bytes,
    )


def test_score_by_hand() -> None:
    # 1/2 * 1/4 * 1/8 = 2^-6 over three tokens: perplexity 2^2, and 6 bits over 8 bytes.
    result = score(make_facts([1 / 2, 1 / 4, 1 / 8, 1 / 16], [1, 2, 6, 1]), 3)
    assert result.nll_sum == pytest.approx(6 * math.log(2), rel=1e-15)
    assert result.nll_mean == pytest.approx(2 * math.log(2), rel=1e-15)
    assert result.perplexity == pytest.approx(4.0, rel=1e-15)
    assert result.bits_per_byte == pytest.approx(0.75, rel=1e-15)
    assert result.eos_nll == pytest.approx(math.log(16), rel=1e-15)
    assert result.rank_mean == 3.0
    assert result.rank_surprisal_ratio == pytest.approx(9 / (6 * math.log(2)), rel=1e-15)
    assert result.entropy_mean == 1.0
    assert result.margin_mean == -0.5
    assert result.top1_rate == pytest.approx(1 / 3)
    # Perplexities 2, 4 and 8 against the threshold 2.5.
    assert result.surprising_rate == pytest.approx(2 / 3)


def test_columns_have_the_promised_order() -> None:
    assert " ".join(field.name for field in fields(Score)) == (
        "num_prompt_tokens num_response_tokens num_bytes nll_sum nll_mean perplexity bits_per_byte "
        "eos_nll rank_mean rank_surprisal_ratio entropy_mean margin_mean top1_rate surprising_rate"
    )


def test_empty_response_has_no_metrics_but_its_end() -> None:
    result = score(make_facts([1 / 4], [1]), 0, num_bytes=0)
    assert result.eos_nll == pytest.approx(math.log(4))
    metrics = (getattr(result, field.name) for field in fields(Score)[3:])
    assert [value for value in metrics if value is not None] == [result.eos_nll]


def test_no_end_of_turn() -> None:
    assert score(make_facts([0.5], [1]), 1).eos_nll is None


def test_certain_response_has_no_ratio() -> None:
    result = score(make_facts([1.0, 1.0], [1, 1]), 2)
    assert (result.nll_sum, result.perplexity, result.rank_surprisal_ratio) == (0.0, 1.0, None)
    assert math.copysign(1.0, result.nll_sum or 0.0) == 1.0


def test_no_bytes_no_bits_per_byte() -> None:
    assert score(make_facts([0.5], [1]), 1, num_bytes=0).bits_per_byte is None


def test_perplexity_beyond_float64_is_none() -> None:
    facts = Facts(np.array([-800.0]), np.array([100], np.int32), np.zeros(1), np.zeros(1))
    result = score(facts, 1)
    assert (result.nll_mean, result.perplexity) == (800.0, None)


def test_infinite_margin_is_none() -> None:
    # A vocabulary whose other logits are all minus infinity.
    facts = Facts(np.zeros(1), np.ones(1, np.int32), np.zeros(1), np.array([np.inf]))
    assert score(facts, 1).margin_mean is None


def test_sum_does_not_depend_on_order() -> None:
    probabilities = np.random.default_rng(0).uniform(1e-6, 1, 501).tolist()
    forward = score(make_facts(probabilities, [1] * 501), 501)
    backward = score(make_facts(probabilities[::-1], [1] * 501), 501)
    assert forward.nll_sum == backward.nll_sum


def test_ifd() -> None:
    assert ifd_scores(1.0, 2.0) == (pytest.approx(math.exp(-1)), 0.5)
    assert ifd_scores(None, 2.0) == (None, None)
    assert ifd_scores(2.0, None) == (None, None)
    assert ifd_scores(1.0, 0.0) == (pytest.approx(math.e), None)
    assert ifd_scores(800.0, 1.0) == (None, 800.0)
