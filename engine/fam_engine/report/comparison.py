"""Two runs compared, on a terminal: a table by source, what changed most, what else differs.

In: the dictionary `jobs.comparing.job.compare_runs` makes. Out: text through rich, readable at 80 columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fam_engine.report.wording import (
    MAX_ROWS,
    MISSING,
    short_names,
    taken_together,
    too_few,
    visible,
)

_SOURCE_WIDTH = 17
_LABELS = {
    "nll_mean": "nats a token",
    "bits_per_byte": "bits a byte",
    "correct": "share correct",
}
_VALUE_WIDTH = 60


def print_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Print what was found."""
    for letter, run in zip("AB", comparison["runs"], strict=True):
        repeated = f", {run['num_repeated']:,} with a repeated id" if run["num_repeated"] else ""
        console.print(Text(visible(f"{letter}: {run['path']}, {run['n']:,} rows{repeated}")))
    console.print(Text(f"{comparison['joined']:,} records are in both"))
    for letter, only in zip("AB", comparison["only"], strict=True):
        if only["n"]:
            console.print(Text(visible(f"only in {letter}: {_some(only)}")))
    for letter, unpaired in zip("AB", comparison["unpaired"], strict=True):
        if unpaired["n"]:
            why = (
                "their id repeats, and neither source nor file and line finds them in the other run"
            )
            console.print(Text(visible(f"not paired, of {letter}: {_some(unpaired)}: {why}")))
    for metric in comparison["overall"]["metrics"]:
        _print_metric(comparison, metric, console)
    for remark in (*taken_together(comparison), *too_few(comparison["sources"])):
        console.print(Text(visible(remark), style="dim"))
    _print_changed(comparison, console)
    _print_settings(comparison["settings"], console)


def _some(rows: Mapping[str, Any]) -> str:
    more = " ..." if rows["n"] > len(rows["ids"]) else ""
    return f"{rows['n']:,} ({', '.join(rows['ids'])}{more})"


def _print_metric(comparison: Mapping[str, Any], metric: str, console: Console) -> None:
    title = f"\n{_LABELS[metric]} ({metric}), B minus A with 95 % intervals over questions"
    console.print(Text(title, style="bold"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("source", overflow="fold", max_width=_SOURCE_WIDTH)
    for name in ("records", "A", "B", "B - A", "interval"):
        table.add_column(name, justify="right", no_wrap=True)
    names = list(comparison["sources"])
    labels = short_names(names[:MAX_ROWS], 2 * _SOURCE_WIDTH, mark="..")
    rows = [_row(label, comparison["sources"][name], metric) for name, label in labels.items()]
    pooled, overall = comparison.get("pooled"), _row("all", comparison["overall"], metric)
    others = [_row(f"others ({pooled['num_sources']:,})", pooled, metric)] if pooled else []
    # The source's name is folded before a word of the verdict is cut.
    table.add_column("B is", min_width=_longest_word([*rows, *others, overall]))
    for row in rows:
        table.add_row(*map(Text, row))
    if len(names) > MAX_ROWS:
        table.add_row(f"and {len(names) - MAX_ROWS:,} more, see --json")
    for row in others:
        table.add_row(*row)
    if len(names) > 1:
        table.add_section()
        table.add_row(*overall)
    console.print(table)
    correlation = comparison["rank_correlation"][metric]
    if correlation is not None:
        console.print(Text(f"rank correlation of the records: {correlation:.3f}"))


def _longest_word(rows: Sequence[Sequence[str]]) -> int:
    return max(len(word) for *_, verdict in rows for word in verdict.split())


def _row(label: str, of_source: Mapping[str, Any], metric: str) -> list[str]:
    entry = of_source["metrics"][metric]
    difference = entry["difference"]
    low, high = difference["low"], difference["high"]
    limits = MISSING if low is None or high is None else f"{_signed(low)} to {_signed(high)}"
    return [
        label,
        f"{entry['n']:,}",
        _plain(entry["first"]),
        _plain(entry["second"]),
        _signed(difference["value"]),
        limits,
        entry["verdict"],
    ]


def _plain(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    if value is None:
        return MISSING
    # A difference of rounding alone is not to stand there as a zero that is `higher`.
    return f"{value:+.0e}" if 0.0 < abs(value) < 0.0005 else f"{value:+.3f}"


def _print_changed(comparison: Mapping[str, Any], console: Console) -> None:
    if not comparison["changed"]:
        return
    metric = next(iter(comparison["overall"]["metrics"]))
    console.print(Text(f"\nchanged most, by {metric}", style="bold"))
    for row in comparison["changed"]:
        label = f"{row['id']} ({row['source']})"
        values = f"{_plain(row['first'])} to {_plain(row['second'])}"
        console.print(Text(visible(f"  {_signed(row['difference'])}  {values}  {label}")))


def _print_settings(settings: Mapping[str, Any], console: Console) -> None:
    if settings:
        console.print(Text("\nsettings that differ", style="bold"))
    for name, (first, second) in settings.items():
        console.print(Text(visible(f"  {name}: {_short(first)}, {_short(second)}")))


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _VALUE_WIDTH else f"{text[: _VALUE_WIDTH - 3]}..."
