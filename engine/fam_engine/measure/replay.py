"""Metrics judged against what training on the answers gave: had one picked by them, how much was lost.

In: cells, one a model and task, each holding what several variants of the training answers scored and
the accuracy after training on them. Out: per metric the mean regret (accuracy of the best variant minus
accuracy of the one the metric would have picked, in percentage points) with an interval, its mean rank
correlation with accuracy, and whether it beats picking at random.

All metrics and the random pick see the same variants of the same cells; otherwise a metric would look
good for having been computed where there was little to lose. Intervals resample tasks, since the models'
cells of one task resemble each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fam_engine.measure.familiarity import Direction, signed
from fam_engine.measure.statistics import (
    Estimate,
    Floats,
    Resamples,
    factorize,
    ratio_estimate,
    resample_groups,
)


@dataclass(frozen=True)
class Cell:
    """The variants of one task for one model.

    Attributes:
        model: Its name.
        task: Its name.
        accuracies: float64[n], n >= 2, shares between 0 and 1.
        metrics: Name -> float64[n]; infinite values are allowed, NaN is not.
    """

    model: str
    task: str
    accuracies: Floats
    metrics: Mapping[str, Floats]


def judge_metrics(
    cells: Sequence[Cell], directions: Mapping[str, Direction], *, seed: int = 0
) -> dict[str, Any]:
    """Give each metric its regret.

    Args:
        cells: At least one, all with the same metrics.
        directions: Metric -> whether its lowest or its highest value is picked.
        seed: Seed of the resampling.

    Returns:
        `cells`, `tasks`: how many. `metrics`: name -> `direction`, `regret` and `interval`
        (points), `spearman` (mean over cells of the correlation of familiarity with accuracy; None
        where every cell is constant), `against_random` and `against_best` (value and interval of
        the difference in regret, points, and a verdict). `random`: regret and interval. `best`: the
        metric with the lowest regret.
    """
    resamples = resample_groups(factorize([cell.task for cell in cells])[0], seed=seed)
    by_chance = np.array([regret_of_random(cell.accuracies) for cell in cells])
    regrets = {
        name: np.array([regret_of_pick(c.accuracies, signed(c.metrics[name], pick)) for c in cells])
        for name, pick in directions.items()
    }
    best = min(regrets, key=lambda name: float(regrets[name].mean()))
    metrics = {}
    for name, pick in directions.items():
        estimate = _points(resamples, regrets[name])
        metrics[name] = {
            "direction": pick,
            "regret": estimate.value,
            "interval": [estimate.low, estimate.high],
            "spearman": _mean_spearman(cells, name, pick),
            "against_random": _against(resamples, regrets[name] - by_chance),
            "against_best": None
            if name == best
            else _against(resamples, regrets[name] - regrets[best]),
        }
    random = _points(resamples, by_chance)
    return {
        "cells": len(cells),
        "tasks": len({cell.task for cell in cells}),
        "metrics": metrics,
        "random": {"regret": random.value, "interval": [random.low, random.high]},
        "best": best,
    }


def regret_of_pick(accuracies: Floats, order: Floats) -> float:
    """Give the accuracy lost by picking the variant with the lowest value; ties share the pick."""
    return float((accuracies.max() - accuracies[order == order.min()]).mean())


def regret_of_random(accuracies: Floats) -> float:
    """Give the accuracy lost, in expectation, by picking any variant with equal chances."""
    return float((accuracies.max() - accuracies).mean())


def spearman(first: Floats, second: Floats) -> float | None:
    """Give Spearman's rank correlation, ties at their mean rank; None where one is constant."""
    ranks = [_ranks(values) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    size = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return None if size == 0.0 else float((centred[0] * centred[1]).sum()) / size


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = ((2 * ends - counts - 1) / 2)[places]
    return ranks


def _mean_spearman(cells: Sequence[Cell], name: str, pick: Direction) -> float | None:
    found = [spearman(-signed(c.metrics[name], pick), c.accuracies) for c in cells]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _points(resamples: Resamples, shares: Floats) -> Estimate:
    return ratio_estimate(resamples, 100.0 * shares, np.ones(len(shares)))


def _against(resamples: Resamples, differences: Floats) -> dict[str, Any]:
    estimate = _points(resamples, differences)
    verdict = "too few tasks"
    if estimate.low is not None and estimate.high is not None:
        verdict = "not distinguishable"
        if estimate.high < 0.0 or estimate.low > 0.0:
            verdict = "better" if estimate.high < 0.0 else "worse"
    return {
        "value": estimate.value,
        "interval": [estimate.low, estimate.high],
        "verdict": verdict,
    }
