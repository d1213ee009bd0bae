"""The results on a terminal: a table by source, and what was left out.

In: the summary dictionary and the quarantine's counts. Out: text through rich, readable at 80
columns; colour and bold vanish by themselves under NO_COLOR or in a pipe. Each value has its 95 %
interval on the line below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fam_engine.errors import printable
from fam_engine.report.wording import (
    AVERAGES,
    MAX_ROWS,
    MISSING,
    by_familiarity,
    headline,
    number,
    on_request,
    percent,
    remarks,
    short_names,
)

# A name may take two lines of this width.
_SOURCE_WIDTH = 17
# Broken by hand, so that four averages and their intervals fit in 80 columns.
_AVERAGE_LABELS = [
    re.sub("[ -]", lambda sign: f"{sign[0].strip()}\n", name) for name in AVERAGES.values()
]


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Print lines as they are, however long: no markup, no colours, no breaks.

    Args:
        lines: Without line breaks.
        console: Where to print.
    """
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_summary(
    summary: Mapping[str, Any], quarantined: Mapping[str, int], console: Console
) -> None:
    """Print what was found.

    Args:
        summary: From `measure.summary.summarize`.
        quarantined: Records left out, by code.
        console: Where to print.
    """
    if summary["sources"]:
        title = "Perplexity by source, most familiar first (95 % intervals below)"
        console.print(title, highlight=False)
        console.print(_source_table(summary))
        if on_request(summary):
            console.print("Geometric means of what was asked for besides", highlight=False)
            console.print(_on_request_table(summary))
    console.print(Text(printable(headline(summary))))
    for remark in remarks(summary):
        console.print(Text(printable(remark), style="dim"))
    if quarantined:
        console.print(_count_table("left out", quarantined))
    if flags := summary["overall"]["flags"]:
        console.print(_count_table("flagged", flags))


def print_shard(summary: Mapping[str, Any], console: Console) -> None:
    """Print how far a job of many workers is after one of its shards.

    Args:
        summary: What the shard came to.
        console: Where to print.
    """
    console.print(
        f"shard {summary['shard']}: all of its {summary['shard_parts']:,} parts are done; "
        f"{summary['done']:,} of {summary['parts']:,} of the job",
        highlight=False,
    )


def _source_table(summary: Mapping[str, Any]) -> Table:
    with_correct = summary["overall"]["correct"] is not None
    labels = (*_AVERAGE_LABELS, "bits/\nbyte", *(["correct"] if with_correct else []))
    return _by_source(summary, labels, partial(_cells, with_correct=with_correct))


def _on_request_table(summary: Mapping[str, Any]) -> Table:
    measured = on_request(summary)
    return _by_source(summary, measured.values(), partial(_on_request_cells, names=measured))


def _by_source(
    summary: Mapping[str, Any],
    labels: Iterable[str],
    cells: Callable[[str, Mapping[str, Any]], list[Text]],
) -> Table:
    """Make a table with a row a source, most familiar first, one of the sources taken together, and one of all."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("source", overflow="fold", max_width=_SOURCE_WIDTH)
    for label in labels:
        table.add_column(label, justify="right", vertical="top", overflow="fold")
    names = by_familiarity(summary)
    for name, label in short_names(names[:MAX_ROWS], 2 * _SOURCE_WIDTH, mark="..").items():
        table.add_row(*cells(label, summary["sources"][name]))
    if len(names) > MAX_ROWS:
        table.add_row(Text(f"and {len(names) - MAX_ROWS:,} more"))
    if pooled := summary.get("pooled"):
        table.add_row(*cells(f"others ({pooled['num_sources']:,})", pooled))
    if len(names) > 1:
        table.add_section()
        table.add_row(*cells("all", summary["overall"]))
    return table


def _on_request_cells(label: str, entry: Mapping[str, Any], *, names: Iterable[str]) -> list[Text]:
    found = (entry[name] for name in names)
    return [
        Text(label, style="bold"),
        *(Text(MISSING) if one is None else _estimate(one) for one in found),
    ]


def _cells(name: str, entry: Mapping[str, Any], *, with_correct: bool) -> list[Text]:
    label = Text(name, style="bold")
    label.append(
        f"\n{entry['n']:,}, {_count(entry['num_response_tokens'])} tok", style="not bold dim"
    )
    cells = [label]
    cells += [_estimate(entry["perplexity"][average]) for average in AVERAGES]
    cells.append(Text(number(entry["bits_per_byte"]["value"])))
    if with_correct:
        correct = entry["correct"]
        cells.append(Text(MISSING if correct is None else percent(correct["share"]["value"])))
    return cells


def _estimate(estimate: Mapping[str, float | None]) -> Text:
    text = Text(number(estimate["value"]))
    if estimate["low"] is not None and estimate["high"] is not None:
        # Without commas four intervals of thousands fit in 80 columns.
        limits = f"{number(estimate['low'])}-{number(estimate['high'])}".replace(",", "")
        text.append(f"\n{limits}", style="dim")
    return text


def _count(value: int) -> str:
    """Write a count in at most five characters."""
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:.{1 if value < 100 * size else 0}f}{unit}"
    return str(value)


def _count_table(label: str, counts: Mapping[str, int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(label)
    table.add_column("records", justify="right")
    for code, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(Text(printable(code)), f"{count:,}")
    return table
