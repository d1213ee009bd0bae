"""Which metric, known before training, foretold the best variant: with an honest word on how few variants there are.

In: cells of a study (metrics and accuracies of its variants). Out: `measure.replay`'s judgement (regret, rank
correlation), and how easily chance would have looked as good: with n variants a metric that knows nothing names the
best one in 1 of n cases, and of m metrics tried the luckiest nearly always looks good.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fam_engine.measure.familiarity import METRICS
from fam_engine.measure.replay import Cell, judge_metrics, regret_of_pick, spearman

# All orders of so many variants are counted; of more a metric's p would need sampling.
_MAX_ORDERS = 7


def foretelling(cells: Sequence[Cell], *, seed: int) -> dict[str, Any] | None:
    """Judge the metrics of a study.

    Args:
        cells: Models and tasks with at least two variants; metrics that not all cells have are
            left out.
        seed: Of the resampling over tasks.

    Returns:
        `judge_metrics`'s result and beside it, for each metric, `named_best` (cells in which it
        picked the best variant, and no other) and `p` (chance that a random order of the variants correlates as
        well as it does in the mean over cells; None beyond 7 variants or several cells);
        `num_variants`: of each cell; `chance_of_best`: for a random pick, in the mean over cells;
        `chance_of_all`: for random picks to be right in every cell; None without cells.
    """
    cells = [cell for cell in cells if len(cell.accuracies) >= 2]
    if not cells:
        return None
    names = [
        name
        for name in METRICS
        if all(name in cell.metrics and not np.isnan(cell.metrics[name]).any() for cell in cells)
    ]
    shared = [
        Cell(c.model, c.task, c.accuracies, {name: c.metrics[name] for name in names})
        for c in cells
    ]
    judged = judge_metrics(shared, {name: METRICS[name].familiar for name in names}, seed=seed)
    for name, entry in judged["metrics"].items():
        entry["named_best"] = sum(_names_best(cell, name) for cell in shared)
        entry["p"] = _permutation_p(shared[0], name) if len(shared) == 1 else None
    chances = [_num_best(cell) / len(cell.accuracies) for cell in shared]
    return {
        **judged,
        "num_variants": [len(cell.accuracies) for cell in shared],
        "chance_of_best": math.fsum(chances) / len(chances),
        "chance_of_all": math.prod(chances),
    }


def _familiarity(cell: Cell, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Give a metric's values so that higher is more familiar."""
    sign = 1.0 if METRICS[name].familiar == "highest" else -1.0
    return sign * cell.metrics[name]


def _names_best(cell: Cell, name: str) -> bool:
    return regret_of_pick(cell.accuracies, -_familiarity(cell, name)) == 0.0


def _num_best(cell: Cell) -> int:
    return int(np.count_nonzero(cell.accuracies == cell.accuracies.max()))


def _permutation_p(cell: Cell, name: str) -> float | None:
    """Give the share of orders of the variants whose correlation is at least the one found."""
    values, count = _familiarity(cell, name), len(cell.accuracies)
    found = spearman(values, cell.accuracies)
    if found is None or count > _MAX_ORDERS:
        return None
    orders = itertools.permutations(range(count))
    # Rounding must not let an order that ties with ours count as below it.
    good = [
        (spearman(values[list(order)], cell.accuracies) or 0.0) >= found - 1e-9 for order in orders
    ]
    return sum(good) / len(good)


def metric_values(sources: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """Turn variant -> metric -> average into metric -> float64[variants], NaN where undefined."""
    return {
        metric: np.array([_or_nan(entry.get(metric)) for entry in sources.values()])
        for metric in METRICS
        if any(entry.get(metric) is not None for entry in sources.values())
    }


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
