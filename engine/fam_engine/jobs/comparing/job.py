"""Two runs compared, from their folders to a dictionary.

In: two folders of `score` runs, or of `eval` runs. Out: what `fam-engine compare --json` prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.comparing.runs import Run, read_run
from fam_engine.measure.comparison import Metric, compare_rows

_NUM_SHOWN: Final = 5
# What says nothing about figures.
_NOT_COMPARED: Final = ("out",)


def compare_runs(first_path: Path, second_path: Path, *, seed: int = 0) -> dict[str, Any]:
    """Compare two runs.

    Args:
        first_path: What is compared with: a folder or its table.
        second_path: What is compared; differences are its figures minus the first's.
        seed: Of the bootstrap intervals.

    Returns:
        `kind`, `runs` (path, n, num_repeated), `joined`, `only` (n and first ids, of each run),
        `settings` (those that differ), and what `measure.comparison.compare_rows` gives.

    Raises:
        InputError: A run does not read, or they have no record in common.
        UsageError: They are of different kinds.
    """
    first, second = read_run(first_path), read_run(second_path)
    if first.kind != second.kind:
        raise UsageError(
            f"is of a `{second.kind}` run, {first.path} of a `{first.kind}` run",
            code="E_COMPARE_KIND",
            where=str(second.path),
            hint="give two runs of one command",
        )
    places = {key: row for row, key in enumerate(second.keys)}
    rows = [(row, places[key]) for row, key in enumerate(first.keys) if key in places]
    if not rows:
        raise InputError(
            f"has no record in common with {first.path}: ids such as `{second.ids[0]}` and "
            f"`{first.ids[0]}`",
            code="E_COMPARE_JOIN",
            where=str(second.path),
            hint="give runs over the same data; records without an `id` are named file:line",
        )
    return {
        "kind": first.kind,
        "runs": [_named(first), _named(second)],
        "joined": len(rows),
        "only": [_only(first, second), _only(second, first)],
        "settings": _differing(first, second),
        **_compared(first, second, rows, seed),
    }


def _named(run: Run) -> dict[str, Any]:
    return {"path": str(run.path), "n": len(run.keys), "num_repeated": run.num_repeated}


def _only(run: Run, other: Run) -> dict[str, Any]:
    there = set(other.keys)
    ids = [name for name, key in zip(run.ids, run.keys, strict=True) if key not in there]
    return {"n": len(ids), "ids": ids[:_NUM_SHOWN]}


def _differing(first: Run, second: Run) -> dict[str, list[Any]]:
    """Give name -> both values; a setting one of them lacks is None there."""
    names = dict.fromkeys((*first.settings, *second.settings))
    pairs = {name: [first.settings.get(name), second.settings.get(name)] for name in names}
    return {
        name: pair
        for name, pair in pairs.items()
        if pair[0] != pair[1] and name not in _NOT_COMPARED
    }


def _compared(first: Run, second: Run, rows: list[tuple[int, int]], seed: int) -> dict[str, Any]:
    in_first, in_second = np.array(rows).T
    metrics = [
        Metric(name, values[in_first], second.metrics[name][in_second])
        for name, values in first.metrics.items()
    ]
    ids, sources, groups = (
        [labels[row] for row in in_first.tolist()]
        for labels in (first.ids, first.sources, first.groups)
    )
    return compare_rows(ids, sources, groups, metrics, seed=seed)
