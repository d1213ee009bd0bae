"""A measurement on a terminal: a line a workload, and what changed.

In: the result of `bench`, changes against an earlier one. Out: text through rich, readable at 80 columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fam_engine.measure.timing import Change, slower
from fam_engine.report.wording import visible

_STYLES = {"slower": "red", "faster": "green", "within the limit": "dim"}
_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def print_bench(result: Mapping[str, Any], changes: Sequence[Change], console: Console) -> None:
    """Print what was measured.

    Args:
        result: `environment`, `settings`, `workloads`.
        changes: Against an earlier result; empty: there is none.
        console: Where to print.
    """
    environment, settings = result["environment"], result["settings"]
    console.print(
        f"{visible(environment['device'])}, {environment['cores']} cores; "
        f"{visible(settings['model'])}, {settings['precision']} weights; medians of "
        f"{settings['rounds']} runs",
        markup=False,
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("workload", no_wrap=True)
    for name in ("speed", "a run", "20-80 %", "first run", "memory"):
        table.add_column(name, justify="right")
    for name, row in result["workloads"].items():
        table.add_row(name, *_cells(row))
    console.print(table)
    for change in changes:
        style = _STYLES[change.verdict]
        console.print(f"{_sentence(change)}", style=style, highlight=False)
    if changes and not slower(changes):
        console.print("nothing is slower than allowed", highlight=False)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{amount(row['per_second'])} {row['unit']}/s",
        seconds(row["median_seconds"]),
        f"{seconds(row['p20_seconds'])}-{seconds(row['p80_seconds'])}",
        seconds(row["first_seconds"]),
        f"{row['peak_bytes'] / 2**30:.2f} GiB",
    ]


def _sentence(change: Change) -> str:
    return (
        f"{change.workload}: {change.ratio:.2f} times the speed of before "
        f"({amount(change.before)} to {amount(change.now)}), {change.verdict}"
    )


def amount(value: float) -> str:
    """Write a quantity with three digits, such as `1.23 M`."""
    for size, letter in _STEPS:
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    """Write a short time, such as `12.3 ms`."""
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 1e-3:
        return f"{value * 1e3:.1f} ms"
    return f"{value * 1e6:.0f} us"
