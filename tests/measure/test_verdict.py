"""The verdict's rule, case by case."""

from __future__ import annotations

import numpy as np
import pytest

from fam_engine.measure.statistics import Estimate
from fam_engine.measure.verdict import find_candidate, joined_verdict, judge_pair, verdict_of


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.03, 0.2, "helps"),
        (0.001, 0.2, "helps"),
        (-0.2, -0.03, "hurts"),
        (-0.01, 0.01, "no effect"),
        # Surely above 0, and surely too small to matter.
        (0.001, 0.015, "no effect"),
        (-0.01, 0.05, "not distinguishable"),
        (-0.3, 0.3, "not distinguishable"),
        # An end on the margin or on 0 is not within or above it.
        (-0.02, 0.01, "not distinguishable"),
        (0.0, 0.1, "not distinguishable"),
    ],
)
def test_rule(low: float, high: float, verdict: str) -> None:
    assert verdict_of(Estimate((low + high) / 2, low, high), 0.02) == verdict


def test_without_an_interval_nothing_is_said() -> None:
    assert verdict_of(Estimate(0.3), 0.02) == "not measured"
    assert judge_pair([], [], margin=0.02)["verdict"] == "not measured"


def test_candidate_is_the_most_familiar() -> None:
    assert find_candidate({"a": 3.0, "b": 2.0, "c": None, "d": 2.0}) == "b"
    assert find_candidate({"a": None}) is None


def test_pairs_are_compared_question_by_question() -> None:
    reference = np.tile([0.0, 1.0], (3, 100))
    better = reference.copy()
    better[:, :60:2] = 1.0
    found = judge_pair([better], [reference], margin=0.02)
    assert found["verdict"] == "helps"
    assert found["difference"]["value"] == pytest.approx(0.15)


def test_cells_that_disagree_are_mixed() -> None:
    assert joined_verdict(["helps", "helps", "not measured"]) == "helps"
    assert joined_verdict(["helps", "not distinguishable"]) == "mixed"
    assert joined_verdict(["not measured"]) == "not measured"
