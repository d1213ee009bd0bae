"""Two runs compared, from their folders to a dictionary.

In: two folders of `score` runs, or of `eval` runs. Out: what `fam-engine compare --json` prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.comparing.pairing import Paired, pair_rows
from fam_engine.jobs.comparing.runs import Run, read_run, tell_models
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
        `kind`, `runs` (path, n, num_repeated), `joined`, `only` and `unpaired` (n and first ids, of each
        run; see `pairing.Rest`), `settings` (those that differ), and what
        `measure.comparison.compare_rows` gives.

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
    first, second = tell_models(first, second)
    paired = pair_rows(first, second)
    if not paired.rows:
        raise _nothing_in_common(first, second, paired)
    runs = list(zip((first, second), paired.rest, strict=True))
    return {
        "kind": first.kind,
        "runs": [
            {"path": str(run.path), "n": len(run.ids), "num_repeated": rest.num_repeated}
            for run, rest in runs
        ],
        "joined": len(paired.rows),
        "only": [_some(run, rest.only) for run, rest in runs],
        "unpaired": [_some(run, rest.unpaired) for run, rest in runs],
        "settings": _differing(first, second),
        **_compared(first, second, paired.rows, seed),
    }


def _nothing_in_common(first: Run, second: Run, paired: Paired) -> InputError:
    found = f"ids such as `{second.ids[0]}` ({second.sources[0]}) and `{first.ids[0]}` ({first.sources[0]})"
    hint = "give runs over the same data; records without an `id` are named file:line"
    if paired.rest[0].unpaired:
        found = (
            f"ids such as `{first.ids[paired.rest[0].unpaired[0]]}` are in both but repeat, and neither "
            "the source nor file and line tell which is which"
        )
        hint = "give runs over the same files, or each record an id of its own"
    return InputError(
        f"has no record in common with {first.path}: {found}",
        code="E_COMPARE_JOIN",
        where=str(second.path),
        hint=hint,
    )


def _some(run: Run, rows: list[int]) -> dict[str, Any]:
    return {"n": len(rows), "ids": [run.ids[row] for row in rows[:_NUM_SHOWN]]}


def _differing(first: Run, second: Run) -> dict[str, list[Any]]:
    """Give name -> both values; a setting one of them lacks is None there."""
    names = dict.fromkeys((*first.settings, *second.settings))
    pairs = {name: [first.settings.get(name), second.settings.get(name)] for name in names}
    differing = {
        name: pair
        for name, pair in pairs.items()
        if pair[0] != pair[1] and name not in _NOT_COMPARED
    }
    return {name: pair for name, pair in differing.items() if not _is_said(name, differing)}


def _is_said(name: str, differing: dict[str, list[Any]]) -> bool:
    """Whether `key.x` only repeats that `x` differs: one run decided it (`auto`), the other was told.

    Where both have it, it says more, as of a model whether its files differ or their place.
    """
    plain = name.removeprefix("key.")
    return plain != name and plain in differing and None in differing[name]


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
