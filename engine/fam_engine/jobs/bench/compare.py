"""A measurement against an earlier one.

In: two results of `bench`. Out: what changed for each workload both have. Results of different machines, models or
amounts of work are refused: their ratio says nothing about the program.
"""

from __future__ import annotations

import json
import math
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
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}",
            code="E_BENCH_FILE",
            where=str(file),
            hint="check the path",
        ) from None
    except (ValueError, RecursionError):
        result = None
    if not _is_result(result):
        raise UsageError(
            "is no result of `fam-engine bench --out`", code="E_BENCH_FILE", where=str(file)
        )
    found: dict[str, Any] = result
    return found


def _is_result(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Whether a value has what is compared."""
    parts = ("environment", "settings", "workloads")
    if not isinstance(value, dict) or not all(isinstance(value.get(one), dict) for one in parts):
        return False
    return all(
        isinstance(row, dict) and all(_is_above_0(row.get(one)) for one in ("amount", "per_second"))
        for row in value["workloads"].values()
    )


def _is_above_0(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    return type(value) in (int, float) and 0 < value < math.inf


def check_comparable(before: Mapping[str, Any], now: Mapping[str, Any], *, where: str) -> None:
    """Refuse what can be told before anything is measured: another machine, model or setting.

    Args:
        before: The earlier result.
        now: `environment` and `settings` of this run; of its `workloads` the names are enough.
        where: The earlier one's file, for messages.

    Raises:
        UsageError: They differ, or have no workload in common.
    """
    differs = what_differs(before["environment"], now["environment"])
    old, new = before["settings"], now["settings"]
    differs += [f"{n}: {old.get(n)}, {new[n]}" for n in _SAME_SETTINGS if old.get(n) != new[n]]
    if not differs and not _shared(before, now):
        differs = ["no workload is in both"]
    _refuse(differs, where)


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
    check_comparable(before, now, where=where)
    shared = _shared(before, now)
    differs = []
    for name in shared:
        amounts = [result["workloads"][name]["amount"] for result in (before, now)]
        if amounts[0] != amounts[1]:
            differs.append(f"work of {name}: {amounts[0]}, {amounts[1]}")
    _refuse(differs, where)
    return [
        judge_change(
            name,
            before["workloads"][name]["per_second"],
            now["workloads"][name]["per_second"],
            max_slowdown=max_slowdown,
        )
        for name in shared
    ]


def _shared(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in now["workloads"] if name in before["workloads"]]


def _refuse(differs: list[str], where: str) -> None:
    """Refuse a comparison if anything differs."""
    if differs:
        raise UsageError(
            f"cannot be compared with this run ({'; '.join(differs)})",
            code="E_BENCH_COMPARE",
            where=where,
            hint="measure both with the same settings on one machine",
        )
