"""Intervals over seeds and questions: hand-made tables, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fam_engine.measure.crossed import accuracy, crossed_mean
from fam_engine.measure.student import student_quantile


def test_variances_of_seeds_and_questions_add_up() -> None:
    table = np.array([[1.0, 1, 0, 0], [1, 0, 0, 1]])
    # Question means 1, 1/2, 0, 1/2: variance 1/6, over 4. Seed means both 1/2.
    found = crossed_mean([table])
    assert found.value == 0.5
    half = student_quantile(3) * math.sqrt(1 / 6 / 4)
    assert found.high == pytest.approx(0.5 + half)
    assert found.low == pytest.approx(0.5 - half)


def test_seeds_that_disagree_make_the_interval_wide() -> None:
    agree = np.tile([1.0, 0.0], (3, 50))
    apart = np.vstack([np.ones(100), np.zeros(100), np.tile([1.0, 0.0], 50)])
    first, second = crossed_mean([agree]), crossed_mean([apart])
    assert first.value == second.value == 0.5
    assert first.high is not None
    assert second.high is not None
    assert first.high < 0.62
    # Two degrees of freedom: three seeds at 0, 1/2 and 1 say nothing.
    assert second.high > 1.5


def test_results_that_do_not_vary_have_the_rule_of_three() -> None:
    found = accuracy([np.ones((3, 60))])
    assert (found.value, found.low, found.high) == (1.0, 0.95, 1.0)
    none = crossed_mean([np.zeros((3, 60))])
    assert (none.low, none.high) == (-0.05, 0.05)


def test_a_small_task_in_which_nothing_varies_makes_the_interval_wide() -> None:
    """Ten questions without a difference leave room for one in three, whatever a thousand others say."""
    small, large = np.zeros((3, 10)), np.zeros((3, 1000))
    assert crossed_mean([small]).high == 0.3
    assert crossed_mean([small, large]).high == pytest.approx(0.3 / 2)
    assert crossed_mean([large, large]).high == pytest.approx(0.003 / 2)
    varying = np.tile([1.0, -1.0], (3, 500))
    of_it, of_both = crossed_mean([varying]), crossed_mean([small, varying])
    assert of_it.high is not None
    assert of_both.high == pytest.approx(math.hypot(of_it.high / 2, 0.15), rel=1e-3)


def test_rounding_is_no_variance() -> None:
    """Each of three seeds is right on a third of the questions, another one each."""
    found = crossed_mean([np.tile(np.eye(3), (1, 20))])
    assert found.high == pytest.approx(1 / 3 + 3 / 60)


def test_tasks_count_alike_whatever_their_size() -> None:
    found = crossed_mean([np.ones((2, 10)), np.zeros((2, 90))])
    assert found.value == 0.5


def test_nothing_measured_is_nothing_said() -> None:
    assert crossed_mean([]).value is None


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    hits, rounds, truth = 0, 400, 0.0
    for _ in range(rounds):
        questions, seeds = generator.normal(0, 0.5, 40), generator.normal(0, 0.15, 3)
        table = truth + questions + seeds[:, None] + generator.normal(0, 0.4, (3, 40))
        found = crossed_mean([table])
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    # Two standard errors of 400 rounds below 95 %; above is allowed, it errs on the wide side.
    assert hits / rounds > 0.93
