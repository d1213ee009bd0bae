from __future__ import annotations

import math

import numpy as np
import pytest

from fam_engine.measure.accuracy import (
    compare_clustered,
    compare_paired,
    mcnemar,
    mean_of,
    wilson,
)
from fam_engine.measure.statistics import Estimate


def results(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, ...]:
    counts = (both, only_first, only_second, neither)
    return (
        np.repeat([True, True, False, False], counts),
        np.repeat([True, False, True, False], counts),
    )


def test_wilson_gives_the_published_intervals() -> None:
    # Newcombe 1998, Stat. Med. 17, 857, table I, method 3.
    for (correct, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        estimate = wilson(correct, n)
        assert (estimate.low, estimate.high) == pytest.approx(expected, abs=5e-5)
        assert estimate.value == correct / n
    assert wilson(29, 29).high == 1.0
    assert wilson(0, 0) == Estimate(None)


def test_newcombe_gives_the_published_intervals() -> None:
    # Newcombe 1998, Stat. Med. 17, 2635, table II, method 10.
    paired = compare_paired(*results(36, 12, 2, 0))
    assert paired.difference.value == pytest.approx(0.2)
    assert paired.difference.low == pytest.approx(0.0569, abs=5e-5)
    assert paired.difference.high == pytest.approx(0.3404, abs=5e-5)
    assert (paired.n, paired.only_first, paired.only_second) == (50, 12, 2)


def test_exchanging_the_models_turns_the_sign() -> None:
    one, other = compare_paired(*results(9, 7, 3, 11)), compare_paired(*results(9, 3, 7, 11))
    assert one.p == other.p
    assert one.difference.value == pytest.approx(-float(other.difference.value or 0))
    assert one.difference.low == pytest.approx(-float(other.difference.high or 0))


def test_models_that_agree_on_all_questions_are_not_called_equal() -> None:
    paired = compare_paired(*results(20, 0, 0, 30))
    assert paired.p == 1.0
    assert paired.verdict == "within noise"
    assert paired.difference.low is not None
    assert paired.difference.low < -0.02
    assert compare_paired(np.array([], bool), np.array([], bool)).difference == Estimate(None)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 0), (6, 0), (10, 2), (7, 7), (30, 14)])
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    total = b + c
    tail = sum(math.comb(total, k) for k in range(min(b, c) + 1)) / 2**total
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail), rel=1e-12)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_takes_many_questions() -> None:
    # Beyond float64's exponents; the normal approximation with continuity correction is close here.
    z = (abs(50_600 - 49_400) - 1) / math.sqrt(100_000)
    assert mcnemar(50_600, 49_400) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_verdicts() -> None:
    assert compare_paired(*results(5, 6, 0, 5)).verdict == "better"
    assert compare_paired(*results(5, 0, 6, 5)).verdict == "worse"
    assert compare_paired(*results(5, 5, 0, 5)).verdict == "within noise"


def test_intervals_of_a_difference_cover_it() -> None:
    # 95 % of the time on average, also where few questions differ; a bootstrap covers 80 % here.
    generator = np.random.default_rng(0)
    shares = (0.60, 0.06, 0.02, 0.32)
    covered = 0
    for counts in generator.multinomial(60, shares, 1000):
        difference = compare_paired(*results(*counts.tolist())).difference
        assert difference.low is not None
        assert difference.high is not None
        covered += difference.low <= 0.04 <= difference.high
    assert covered / 1000 > 0.93


def test_a_mean_over_tasks_has_the_interval_of_independent_tasks() -> None:
    one = wilson(40, 100)
    mean = mean_of([one, one, Estimate(None), one, one])
    assert mean.value == pytest.approx(0.4)
    assert one.low is not None
    assert mean.low == pytest.approx(0.4 - (0.4 - one.low) / 2)
    assert mean_of([one]) == one
    assert mean_of([]) == Estimate(None)


def test_several_answers_to_a_question_count_as_far_as_they_differ() -> None:
    first, second = results(9, 11, 2, 8)
    paired, each = compare_paired(first, second), np.arange(30)
    assert compare_clustered(first, second, each) == paired
    twice = compare_clustered(first.repeat(2), second.repeat(2), each.repeat(2))
    assert (twice.n, twice.only_first, twice.only_second, twice.p) == (30, 11, 2, paired.p)
    assert vars(twice.difference) == pytest.approx(vars(paired.difference))
    # Ten gains on ten questions are ten, though each question has another answer that gained nothing.
    first, second = results(0, 10, 0, 50)
    spread = compare_clustered(first, second, np.arange(60) % 30)
    assert vars(spread.difference) == pytest.approx(vars(compare_paired(first, second).difference))


def test_many_answers_to_few_questions_are_no_finding() -> None:
    first, second = results(0, 40, 0, 0)
    paired = compare_clustered(first, second, np.arange(40) % 2)
    assert (paired.p, paired.verdict) == (0.5, "within noise")
    assert paired.difference == compare_paired(*results(0, 2, 0, 0)).difference
    # Ten questions gained an answer each, and one lost twenty.
    first, second = results(0, 10, 20, 0)
    paired = compare_clustered(first, second, np.minimum(np.arange(30), 10))
    assert (paired.only_first, paired.only_second, paired.p) == (10, 1, 1.0)


def test_answers_that_resemble_each_other_do_not_make_false_findings() -> None:
    generator = np.random.default_rng(2)
    questions, covered, found = np.repeat(np.arange(60), 4), 0, 0
    for _ in range(200):
        fate = np.where(generator.random(240) < 0.9, generator.random(60).repeat(4), 1.0)
        base = generator.random(240) < 0.6
        first, second = base | (fate < 0.06), base | ((fate > 0.06) & (fate < 0.12))
        paired = compare_clustered(first, second, questions)
        low, high = paired.difference.low, paired.difference.high
        covered += low is not None and high is not None and low <= 0.0 <= high
        found += paired.verdict != "within noise"
    assert covered >= 190
    assert found <= 10
