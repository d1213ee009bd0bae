"""`select --replay`: metrics judged on a ledger of known accuracies.

In: the ledger's file. Out: one dictionary. Two kinds of tasks are known to mislead and are kept apart when a ledger
holds other tasks too: BoolQ of the released ledgers has the same rows in training and test, so the result is given a
second time without it; PlanBench's planning tasks vary ten times more than all others and would rule every mean, so
they are judged by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fam_engine.jobs.selection.ledger import Ledger, read_ledger
from fam_engine.measure.replay import Cell, judge_metrics

LEAKED = "boolq"
APART = "plan_bench"

RULE = (
    "in each cell (a model and a task) the variant whose metric is lowest (highest where it says so) "
    "is picked among the variants whose accuracy and metrics are all known; regret is the accuracy of "
    "the best of them minus that of the pick, in percentage points, averaged over cells; random is the "
    "same for a pick by equal chances; intervals are 95 % bootstraps over tasks"
)


def run_replay(path: Path, *, seed: int = 0) -> dict[str, Any]:
    """Judge the metrics of a ledger.

    Args:
        path: CSV file; see `jobs.selection.ledger` for its columns.
        seed: Seed of the resampling.

    Returns:
        `rule`, and what `measure.replay.judge_metrics` gives for all tasks but PlanBench;
        `without_boolq` and `plan_bench`, the same for other cells, where the ledger has such tasks;
        `left_out` and `ignored_columns` of the ledger.

    Raises:
        InputError: The ledger cannot be used.
    """
    ledger = read_ledger(path)
    plans, main = _split(ledger.cells, lambda cell: cell.task.startswith(APART))
    if not main:
        plans, main = [], plans
    leaked, clean = _split(main, lambda cell: cell.task == LEAKED)
    rule = RULE + (f"; {APART} tasks are judged apart" if plans else "")
    result = {"rule": rule, **_judged(ledger, main, seed)}
    if leaked and clean:
        result[f"without_{LEAKED}"] = _judged(ledger, clean, seed)
    if plans:
        result[APART] = _judged(ledger, plans, seed)
    return result | {
        "left_out": ledger.left_out,
        "ignored_columns": list(ledger.ignored_columns),
    }


def _judged(ledger: Ledger, cells: Sequence[Cell], seed: int) -> dict[str, Any]:
    return judge_metrics(cells, ledger.directions, seed=seed)


def _split(cells: Sequence[Cell], holds: Callable[[Cell], bool]) -> tuple[list[Cell], list[Cell]]:
    return [c for c in cells if holds(c)], [c for c in cells if not holds(c)]
