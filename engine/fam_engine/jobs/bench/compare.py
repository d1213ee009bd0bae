"""A measurement against an earlier one.

In: two results of `bench`. Out: what changed for each workload both have. Results of different machines, models or
amounts of work are refused: their ratio says nothing about the program.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fam_engine.errors import UsageError
from fam_engine.jobs.bench.machine import what_differs
from fam_engine.measure.timing import Change, judge_change

_SAME_SETTINGS = ("model_sha256", "precision", "compute_dtype", "device", "limit")


def read_result(file: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        UsageError: It is missing, or no result of `bench`.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        result = None
    if not isinstance(result, dict) or not {"environment", "settings", "workloads"} <= set(result):
        raise UsageError(
            "is no result of `fam-engine bench --out`", code="E_BENCH_FILE", where=str(file)
        )
    return result


def compare(
    before: Mapping[str, Any], now: Mapping[str, Any], *, max_slowdown: float, where: str
) -> list[Change]:
    """Compare all workloads two results share.

    Args:
        before: The earlier result.
        now: The later one.
        max_slowdown: Share of the speed that may be lost.
        where: The earlier one's file, for messages.

    Raises:
        UsageError: They do not measure the same thing.
    """
    differs = what_differs(before["environment"], now["environment"])
    old, new = before["settings"], now["settings"]
    differs += [f"{n}: {old.get(n)}, {new[n]}" for n in _SAME_SETTINGS if old.get(n) != new[n]]
    shared = [name for name in now["workloads"] if name in before["workloads"]]
    for name in shared:
        amounts = [result["workloads"][name]["amount"] for result in (before, now)]
        if amounts[0] != amounts[1]:
            differs.append(f"work of {name}: {amounts[0]}, {amounts[1]}")
    if differs or not shared:
        what = "; ".join(differs) or "no workload is in both"
        raise UsageError(
            f"cannot be compared with this run ({what})",
            code="E_BENCH_COMPARE",
            where=where,
            hint="measure both with the same settings on one machine",
        )
    return [
        judge_change(
            name,
            before["workloads"][name]["per_second"],
            now["workloads"][name]["per_second"],
            max_slowdown=max_slowdown,
        )
        for name in shared
    ]
