"""The judgement of metrics, for the terminal.

In: the dictionary of `select --replay`. Out: one table a set of cells through rich, 80 columns wide,
and in words which metrics beat a random pick.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fam_engine.measure.statistics import MIN_GROUPS
from fam_engine.report.wording import FEW_GROUPS, MISSING, visible

_PARTS = {
    "without_boolq": "The same without BoolQ, whose rows are the same in training and test",
    "plan_bench": "PlanBench alone",
}


def print_replay(result: Mapping[str, Any], console: Console) -> None:
    """Print the judgement.

    Args:
        result: From `jobs.selection.replay.run_replay`.
        console: Where to print.
    """
    _line(console, "Accuracy lost by picking the training answers by a metric, in points")
    _print_part(result, console)
    for name, title in _PARTS.items():
        if name in result:
            console.print()
            _line(console, title)
            _print_part(result[name], console)
    console.print()
    _line(console, f"Rule: {result['rule']}.", "dim")
    for what, count in result["left_out"].items():
        if count:
            _line(console, f"Left out: {count:,} lines {what.replace('_', ' ')}.", "dim")
    if result["ignored_columns"]:
        names = ", ".join(visible(name) for name in result["ignored_columns"])
        _line(console, f"Not judged: {names}.", "dim")


def _print_part(part: Mapping[str, Any], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("metric", no_wrap=True, max_width=24)
    for label in ("regret", "95 % interval", "against random", "rank corr."):
        table.add_column(label, justify="right")
    ranked = sorted(part["metrics"].items(), key=lambda item: float(item[1]["regret"]))
    for name, entry in ranked:
        table.add_row(
            Text(visible(name)),
            f"{entry['regret']:.2f}",
            _interval(entry["interval"]),
            _against(entry["against_random"]),
            MISSING if entry["spearman"] is None else f"{entry['spearman']:+.2f}",
        )
    random = part["random"]
    table.add_section()
    table.add_row("random", f"{random['regret']:.2f}", _interval(random["interval"]), "", "")
    console.print(table)
    _line(console, _finding(part))


def _finding(part: Mapping[str, Any]) -> str:
    metrics, best = part["metrics"], visible(part["best"])
    found = f"{part['cells']} cells, {part['tasks']} tasks. {best} loses least"
    alike = [
        visible(name)
        for name, entry in metrics.items()
        if entry["against_best"] and entry["against_best"]["verdict"] == "not distinguishable"
    ]
    found += f", but is not distinguishable from {', '.join(alike)}. " if alike else ". "
    better = [
        visible(name)
        for name, entry in metrics.items()
        if entry["against_random"]["verdict"] == "better"
    ]
    found += f"Better than random: {', '.join(better) or 'none'}."
    if part["tasks"] < MIN_GROUPS:
        found += f" Fewer than {MIN_GROUPS} tasks tell nothing from chance."
    elif part["tasks"] < FEW_GROUPS:
        found += f" Fewer than {FEW_GROUPS} tasks: the intervals are rather too narrow."
    return found


def _interval(interval: list[float | None]) -> str:
    low, high = interval
    return MISSING if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _against(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:+.2f} {entry['verdict'].replace('not distinguishable', 'unclear')}"


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style))
