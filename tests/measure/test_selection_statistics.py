from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fam_engine.measure.familiarity import Averaged, Direction
from fam_engine.measure.selection_statistics import compare_sources
from fam_engine.measure.statistics import group_means, paired_difference


def parts(values: list[float]) -> Averaged:
    numerators = np.array(values, np.float64)
    return Averaged(numerators, np.ones(len(numerators)), lambda x: x, "mean", "points")


def compared(rows: list[tuple[str, int, float]], pick: Direction = "lowest") -> dict[str, Any]:
    names = list(dict.fromkeys(source for source, _, _ in rows))
    return compare_sources(
        parts([value for _, _, value in rows]),
        np.array([names.index(source) for source, _, _ in rows]),
        np.array([group for _, group, _ in rows]),
        names=names,
        pick=pick,
        seed=0,
    )


def two_sources(shift: float, noise: float, count: int = 200) -> list[tuple[str, int, float]]:
    generator = np.random.default_rng(1)
    easy = generator.normal(5.0, 3.0, count)
    rows = [("a", g, easy[g] + generator.normal(0, noise)) for g in range(count)]
    return rows + [("b", g, easy[g] + shift + generator.normal(0, noise)) for g in range(count)]


def test_a_clear_difference_is_one_though_questions_vary_more() -> None:
    result = compared(two_sources(shift=0.5, noise=0.1))
    assert result["first"] == "a"
    (pair,) = result["pairs"]
    assert (pair["source"], pair["num_groups"], pair["verdict"]) == ("b", 200, "behind")
    assert pair["difference"]["low"] > 0.4
    assert result["sources"]["a"]["probability_first"] == 1.0
    low, high = result["sources"]["a"]["interval"]
    # Unpaired, the two could not be told apart: each interval is wider than the difference.
    assert high - low > 0.5


def test_the_highest_can_come_first() -> None:
    result = compared(two_sources(shift=0.5, noise=0.1), "highest")
    assert result["first"] == "b"
    assert result["pairs"][0]["verdict"] == "behind"
    assert result["sources"]["b"]["probability_first"] == 1.0


def test_noise_is_not_distinguishable() -> None:
    result = compared(two_sources(shift=0.0, noise=1.0))
    assert result["pairs"][0]["verdict"] == "not distinguishable"
    chances = [entry["probability_first"] for entry in result["sources"].values()]
    assert sum(chances) == pytest.approx(1.0)


def test_equal_sources_are_first_equally_often() -> None:
    values = np.random.default_rng(0).normal(size=40)
    rows = [(name, g, value) for name in "ab" for g, value in enumerate(values)]
    result = compared([*rows, *(("c", g, value + 1.0) for g, value in enumerate(values))])
    chances = [entry["probability_first"] for entry in result["sources"].values()]
    assert chances == [0.5, 0.5, 0.0]


def test_a_resample_without_values_has_no_first() -> None:
    # A quarter of the resamples draw the second question twice, which has no value.
    result = compared([("a", 0, 1.0), ("b", 0, 2.0), ("a", 1, math.nan)])
    first, other = (result["sources"][name]["probability_first"] for name in "ab")
    assert first == pytest.approx(0.75, abs=0.05)
    assert other == 0.0


def test_the_paired_difference_is_that_of_group_means_for_one_answer_a_question() -> None:
    rows = two_sources(shift=0.2, noise=0.5)
    result = compared(rows)["pairs"][0]["difference"]
    columns = {
        name: group_means(
            np.array([g for s, g, _ in rows if s == name]),
            np.array([v for s, _, v in rows if s == name]),
        )
        for name in "ab"
    }
    reference, _ = paired_difference(columns["b"], columns["a"], seed=0)
    assert reference.low is not None
    assert result["value"] == pytest.approx(reference.value)
    assert result["low"] == pytest.approx(reference.low, abs=0.03)


def test_sources_without_shared_questions_are_not_compared() -> None:
    result = compared([("a", g, 1.0) for g in range(5)] + [("b", g, 2.0) for g in range(5, 9)])
    assert result["pairs"][0]["verdict"] == "no shared questions"
    assert result["pairs"][0]["difference"]["value"] is None


def test_easier_questions_do_not_make_a_source_come_before_on_shared_ones() -> None:
    # `a` has the lower average only because it also answers easy questions.
    rows = [("a", g, 0.0) for g in range(50)] + [("a", g, 9.0 + g % 2) for g in range(50, 100)]
    rows += [("b", g, 8.0 + g % 2) for g in range(50, 100)]
    result = compared(rows)
    assert result["first"] == "a"
    assert result["pairs"][0]["verdict"] == "ahead"


def test_one_question_is_too_few() -> None:
    result = compared([("a", 0, 1.0), ("b", 0, 2.0)])
    assert result["pairs"][0]["verdict"] == "too few questions"
    assert result["pairs"][0]["difference"]["value"] == 1.0


def test_a_source_without_values_takes_no_part() -> None:
    result = compared([("a", 0, 1.0), ("a", 1, 2.0), ("b", 0, math.nan)])
    assert result["sources"]["b"]["value"] is None
    assert result["sources"]["b"]["probability_first"] == 0.0
    assert result["pairs"] == []
