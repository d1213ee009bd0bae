"""Intervals cover what they should, and treat the answers to one question as one draw."""

from __future__ import annotations

import numpy as np
import pytest

from fam_engine.measure import statistics
from fam_engine.measure.statistics import (
    MIN_GROUPS,
    Estimate,
    factorize,
    group_means,
    median_estimate,
    paired_difference,
    ratio_estimate,
    resample_groups,
)
from fam_engine.measure.student import bootstrap_percentiles


def mean_estimate(groups: np.ndarray, values: np.ndarray, seed: int = 0) -> Estimate:
    resamples = resample_groups(groups, seed=seed, num_resamples=400)
    return ratio_estimate(resamples, values, np.ones(len(values)))


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


@pytest.mark.parametrize("kind", ["mean", "median"])
def test_intervals_cover(kind: str) -> None:
    # 200 samples at 95 %: fewer than 180 hits would be 3.2 standard errors below, more than 199 as
    # far above. Mean and median of a normal distribution are both 0.
    generator = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        values = generator.normal(size=80)
        resamples = resample_groups(np.arange(80), seed=trial, num_resamples=400)
        if kind == "mean":
            estimate = ratio_estimate(resamples, values, np.ones(80))
        else:
            estimate = median_estimate(resamples, values)
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 0.0 <= estimate.high
    assert 180 <= hits <= 199


def test_intervals_of_few_groups_cover() -> None:
    # 400 means of 6 normal draws: plain percentiles leave out the truth in 53 of them on the average, 95 % in 20.
    generator = np.random.default_rng(7)
    missed = 0
    for trial in range(400):
        estimate = mean_estimate(np.arange(MIN_GROUPS), generator.normal(size=MIN_GROUPS), trial)
        assert estimate.low is not None
        assert estimate.high is not None
        missed += not estimate.low <= 0.0 <= estimate.high
    assert 10 <= missed <= 38


def test_width_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert width(mean_estimate(np.arange(1000), values)) == pytest.approx(
        2 * 1.96 * values.std() / 1000**0.5, rel=0.1
    )


def test_copies_of_an_answer_add_no_certainty() -> None:
    values = np.random.default_rng(0).normal(size=100)
    once = mean_estimate(np.arange(100), values)
    copied = mean_estimate(np.repeat(np.arange(100), 9), np.repeat(values, 9))
    naive = mean_estimate(np.arange(900), np.repeat(values, 9))
    assert copied == Estimate(
        pytest.approx(once.value), pytest.approx(once.low), pytest.approx(once.high)
    )
    assert width(naive) == pytest.approx(width(copied) / 3, rel=0.2)


def test_median_interval_equals_direct_resampling() -> None:
    generator = np.random.default_rng(3)
    groups, values = generator.integers(0, 31, 211), generator.normal(size=211)
    resamples = resample_groups(groups, seed=5, num_resamples=300)
    estimate = median_estimate(resamples, values)
    lower, upper = [], []
    for weights in resamples.weights.astype(int):
        drawn = np.sort(np.repeat(values, weights[resamples.units]))
        lower.append(drawn[(len(drawn) - 1) // 2])
        upper.append(drawn[len(drawn) // 2])
    assert estimate.value == np.median(values)
    lowest, highest = bootstrap_percentiles(len(np.unique(groups)))
    assert estimate.low == np.quantile(lower, lowest, method="inverted_cdf")
    assert estimate.high == np.quantile(upper, highest, method="inverted_cdf")


def test_many_groups_are_dealt_into_units(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).lognormal(size=3000)
    full = resample_groups(np.arange(3000), seed=0)
    assert full.weights.shape == (1000, statistics.MAX_UNITS)
    monkeypatch.setattr(statistics, "MAX_UNITS", 500)
    dealt = mean_estimate(np.arange(3000), values)
    assert dealt.value == pytest.approx(values.mean(), rel=1e-12)
    assert width(dealt) == pytest.approx(2 * 1.96 * values.std() / 3000**0.5, rel=0.15)


def test_equal_seeds_equal_intervals() -> None:
    groups, values = np.arange(50), np.random.default_rng(0).normal(size=50)
    assert mean_estimate(groups, values, seed=1) == mean_estimate(groups, values, seed=1)
    assert mean_estimate(groups, values, seed=1) != mean_estimate(groups, values, seed=2)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_for_an_interval(count: int) -> None:
    groups, values = np.zeros(count, np.int64), np.full(count, 2.0)
    expected = Estimate(2.0 if count else None)
    assert mean_estimate(groups, values) == expected
    assert median_estimate(resample_groups(groups, seed=0), values) == expected


def test_one_group_has_no_interval() -> None:
    assert mean_estimate(np.zeros(5, np.int64), np.arange(5.0)) == Estimate(2.0)


@pytest.mark.parametrize(("count", "has_interval"), [(MIN_GROUPS - 1, False), (MIN_GROUPS, True)])
def test_fewer_groups_than_a_sign_test_needs_have_no_interval(
    count: int, has_interval: bool
) -> None:
    groups, values = np.arange(2 * count) // 2, np.arange(2.0 * count)
    paired, shared = paired_difference(
        (np.arange(count), np.arange(float(count))), (np.arange(count), np.zeros(count)), seed=0
    )
    assert shared == count
    resamples = resample_groups(groups, seed=0)
    for estimate in (mean_estimate(groups, values), median_estimate(resamples, values), paired):
        assert estimate.value is not None
        assert (estimate.low is not None) == (estimate.high is not None) == has_interval


def test_missing_values_are_left_out() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan] * 3)
    estimate = mean_estimate(np.arange(12), values)
    assert estimate.value == 2.0
    assert estimate.low is not None
    assert estimate.high is not None
    assert 1.0 <= estimate.low < 2.0 < estimate.high <= 3.0
    assert mean_estimate(np.arange(4), np.full(4, np.nan)) == Estimate(None)


def test_infinite_values_leave_the_median() -> None:
    values = np.array([1.0, 2.0, 3.0, np.inf])
    resamples = resample_groups(np.arange(4), seed=0)
    assert median_estimate(resamples, values).value == 2.5
    assert ratio_estimate(resamples, values, np.ones(4)) == Estimate(None)


def test_overflow_is_none() -> None:
    resamples = resample_groups(np.arange(3), seed=0)
    estimate = ratio_estimate(resamples, np.full(3, 800.0), np.ones(3), transform=np.exp)
    assert estimate == Estimate(None)


def test_paired_difference_uses_shared_groups_only() -> None:
    groups = np.arange(40)
    base = np.random.default_rng(0).normal(scale=10.0, size=40)
    # The questions differ by 10, the sources by 0.5: only pairing can see it.
    first = group_means(groups[5:], base[5:] + 0.5)
    second = group_means(np.append(groups[:35], 0), np.append(base[:35], base[0]))
    estimate, num_groups = paired_difference(first, second, seed=0)
    assert num_groups == 30
    assert estimate.value == pytest.approx(0.5)
    assert width(estimate) < 1e-9
    assert paired_difference(first, (np.array([99]), np.ones(1)), seed=0) == (Estimate(None), 0)


def test_group_means_leave_out_nan() -> None:
    groups, means = group_means(
        np.array([3, 1, 3, 1, 2]), np.array([1.0, 5.0, 3.0, np.nan, np.nan])
    )
    assert groups.tolist() == [1, 3]
    assert means.tolist() == [5.0, 2.0]


def test_factorize_numbers_by_appearance() -> None:
    codes, labels = factorize(["b", "a", "b", None])
    assert codes.tolist() == [0, 1, 0, 2]
    assert labels == ["b", "a", None]
    assert factorize(np.array(["x", "x"]))[0].tolist() == [0, 0]
