"""Axes and examples: what is shown, where, and in which order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fam_engine.report.axes import density, fit_axis
from fam_engine.report.examples import pick_examples


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1.1, 9.5, ["2", "5"]),
        (1, 100, ["1", "2", "5", "10", "20", "50", "100"]),
        (1, 1e6, ["1", "10", "100", "1,000", "10,000", "100,000", "1e6"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    axis = fit_axis(np.linspace(math.log(low), math.log(high), 1000))
    shown = [text for _, text in axis.ticks]
    assert 2 <= len(shown) <= 6
    assert all(
        math.exp(log) == pytest.approx(float(text.replace(",", ""))) for log, text in axis.ticks
    )
    assert set(shown) & set(labels)


@pytest.mark.parametrize("values", [[], [2.0], [2.0, 2.0], [1.0, 1.001], [0.0, 700.0]])
def test_axis_for_any_values(values: list[float]) -> None:
    axis = fit_axis(np.array(values))
    assert axis.low < axis.high
    assert len(axis.ticks) >= 2
    assert all(axis.low <= log <= axis.high for log, _ in axis.ticks)


def test_ticks_beyond_the_largest_float_are_told_apart() -> None:
    ticks = fit_axis(np.full(12, 800.0)).ticks
    assert [text for _, text in ticks] == ["2.66e347", "2.73e347", "2.8e347"]
    assert [text for _, text in fit_axis(np.array([2.0])).ticks] == ["7.21", "7.39", "7.58"]


def test_far_outliers_leave_the_frame() -> None:
    axis = fit_axis(np.append(np.linspace(0.5, 1.5, 99), 700.0))
    assert axis.high < 5.0
    assert axis.num_outside == 1


def test_every_one_of_a_few_findings_stays_in_the_frame() -> None:
    values = np.log([4.0, 10.1, 10.1, 10.3, 21.7])
    axis = fit_axis(values, keep_all=True)
    assert axis.num_outside == 0
    assert axis.low < values[0]
    assert axis.high > values[-1]


def test_density_peaks_where_values_are() -> None:
    values = np.random.default_rng(0).normal(2.0, 0.3, 2000)
    axis = fit_axis(values)
    curve = density(values, axis)
    peak = axis.low + (curve.argmax() + 0.5) / len(curve) * (axis.high - axis.low)
    assert curve.max() == 1.0
    assert peak == pytest.approx(2.0, abs=0.1)
    # A Gaussian of this width has this share of its peak one standard deviation away.
    beside = curve[int((2.3 - axis.low) / (axis.high - axis.low) * len(curve))]
    assert beside == pytest.approx(math.exp(-0.5), abs=0.08)
    assert np.isfinite(density(np.full(20, 2.0), axis)).all()


def test_examples_are_the_extremes_of_long_enough_answers() -> None:
    nll = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, np.nan, 0.0])
    tokens = np.array([9, 9, 9, 9, 9, 9, 0, 1])
    assert pick_examples(nll, tokens, count=2) == ([0, 1], [5, 4])
    # Six long answers cannot fill twice four, so short ones count too.
    assert pick_examples(nll, tokens, count=4) == ([7, 0, 1, 2], [5, 4, 3])


def test_examples_of_few_answers_are_not_shown_twice() -> None:
    assert pick_examples(np.array([1.0]), np.array([9])) == ([0], [])
    assert pick_examples(np.array([2.0, 1.0]), np.array([9, 9])) == ([1], [0])
    assert pick_examples(np.array([]), np.array([], np.int64)) == ([], [])
