from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fam_engine.measure.replay import (
    Cell,
    judge_metrics,
    regret_of_pick,
    regret_of_random,
    spearman,
)


def cell(task: str, accuracies: list[float], **metrics: list[float]) -> Cell:
    return Cell("m", task, np.array(accuracies), {name: np.array(v) for name, v in metrics.items()})


def test_regret_is_what_the_pick_loses_in_points() -> None:
    result = judge_metrics(
        [
            cell("t", [0.5, 0.7], low=[1.0, 2.0], high=[1.0, 2.0]),
            cell("u", [0.6, 0.2], low=[1.0, 2.0], high=[1.0, 2.0]),
        ],
        {"low": "lowest", "high": "highest"},
    )
    assert result["metrics"]["low"]["regret"] == pytest.approx(10.0)
    assert result["metrics"]["high"]["regret"] == pytest.approx(20.0)
    assert result["random"]["regret"] == pytest.approx(15.0)
    assert (result["cells"], result["tasks"], result["best"]) == (2, 2, "low")
    # In one task the metric is right, in the other wrong.
    assert result["metrics"]["low"]["spearman"] == pytest.approx(0.0)


def test_intervals_resample_tasks_not_cells() -> None:
    # The cells of a task are alike: fifteen of each say no more than one.
    tasks = [cell(name, [0.5, 0.5 + (name > "c") / 5], x=[1.0, 2.0]) for name in "abcdef"]
    result = judge_metrics(tasks * 15, {"x": "lowest"})
    assert result["metrics"]["x"] == judge_metrics(tasks, {"x": "lowest"})["metrics"]["x"]


def test_below_six_tasks_nothing_is_told_from_chance() -> None:
    cells = [cell(name, [0.5, 0.7], x=[1.0, 2.0]) for name in "abcdef"]
    few, enough = (judge_metrics(part, {"x": "lowest"}) for part in (cells[:5], cells))
    assert few["metrics"]["x"]["against_random"]["verdict"] == "too few tasks"
    assert few["metrics"]["x"]["interval"] == [None, None]
    assert enough["metrics"]["x"]["against_random"]["verdict"] == "worse"


def test_a_metric_that_is_always_right_beats_random() -> None:
    generator = np.random.default_rng(0)
    cells = []
    for number in range(30):
        accuracies = generator.uniform(0.2, 0.8, 5)
        noise = generator.uniform(0.0, 1.0, 5)
        cells.append(Cell("m", f"t{number}", accuracies, {"good": -accuracies, "noise": noise}))
    result = judge_metrics(cells, {"good": "lowest", "noise": "lowest"})
    good, noise = result["metrics"]["good"], result["metrics"]["noise"]
    assert (good["regret"], good["spearman"]) == (0.0, 1.0)
    assert good["against_random"]["verdict"] == "better"
    assert good["against_best"] is None
    assert noise["against_random"]["verdict"] == "not distinguishable"
    assert noise["against_best"]["verdict"] == "worse"


def test_ties_share_the_pick() -> None:
    accuracies = np.array([0.2, 0.4, 0.9])
    assert regret_of_pick(accuracies, np.array([1.0, 1.0, 5.0])) == pytest.approx(0.6)
    assert regret_of_pick(accuracies, np.array([np.inf] * 3)) == pytest.approx(
        regret_of_random(accuracies)
    )


def test_spearman_has_ties_at_their_mean_rank() -> None:
    # Ranks 0.5 0.5 2 3 against 0 1 2 3.
    ranks = np.array([0.5, 0.5, 2.0, 3.0]), np.arange(4.0)
    expected = np.corrcoef(*ranks)[0, 1]
    assert spearman(np.array([7.0, 7.0, 8.0, np.inf]), np.arange(4.0)) == pytest.approx(expected)
    assert spearman(np.ones(3), np.arange(3.0)) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.randoms())
def test_regret_is_never_negative_and_the_best_has_none(
    values: list[float], random: object
) -> None:
    accuracies = np.array(values)
    order = np.array(values)
    random.shuffle(order)  # type: ignore[attr-defined]
    assert regret_of_pick(accuracies, order) >= 0.0
    assert regret_of_pick(accuracies, -accuracies) == 0.0
    assert 0.0 <= regret_of_random(accuracies) <= 1.0
