"""A verified adapter on a terminal: a row a way of serving it, then what is worth a closer look.

In: the summary as plain values. Out: text through rich, readable at 80 columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fam_engine.report.terminal import print_lines
from fam_engine.report.wording import MISSING, percent, visible

_NAME_WIDTH = 24
_COLUMNS = (
    "nats a\ntoken",
    "change",
    "size of\nchange",
    "worst\nanswer",
    "same\nfirst",
    "order",
    "",
)
_VERDICTS = {True: "within", False: "BEYOND", None: ""}


def print_verification(summary: Mapping[str, Any], console: Console) -> None:
    """Print how far the ways are from the reference.

    Args:
        summary: From `jobs.verifying.job.run_verify`.
        console: Where to print.
    """
    records = summary["records"]
    head = [f"{records['compared']:,} answers, {records['tokens']:,} tokens"]
    head += [f"{count:,} left out: {code}" for code, count in records["left_out_by_code"].items()]
    print_lines(head, console)
    console.print(_table(summary))
    judged = [row for row in summary["ways"][1:] if row["tolerance"] is not None]
    print_lines(_tolerances(judged), console)
    for row in judged:
        print_lines(_order(row), console)
    if summary["server"] is not None:
        print_lines(_server(summary["server"]), console)


def _table(summary: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("computed as", overflow="fold", max_width=_NAME_WIDTH)
    for label in _COLUMNS:
        table.add_column(label, justify="right", no_wrap=True)
    for row in summary["ways"]:
        is_reference = row["name"] == summary["reference"]
        cells = ["reference"] if is_reference else _cells(row)
        table.add_row(Text(visible(row["name"])), f"{row['nll_mean']:.4f}", *cells)
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    correlation = row["rank_correlation"]
    return [
        f"{row['mean']:+.4f}",
        f"{row['mean_abs']:.4f}",
        f"{row['answer_max_abs']:.3f}",
        percent(row["top1_agreement"]),
        MISSING if correlation is None else f"{correlation:.4f}",
        _VERDICTS[row["is_within"]],
    ]


def _tolerances(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(_limits(row), []).append(row["name"])
    for limits, some in names.items():
        yield visible(f"tolerated: {limits} ({'; '.join(some)})")


def _limits(row: Mapping[str, Any]) -> str:
    tolerance = row["tolerance"]
    return f"size {tolerance['mean_abs']:g}, worst answer {tolerance['answer_max_abs']:g}"


def _order(row: Mapping[str, Any]) -> Iterator[str]:
    """Say which answers would be ranked otherwise."""
    picks, worst = row["picks"], row["most_changed"][0]
    if not row["reordered"]:
        return
    moved = zip(worst["nll_mean"], worst["place"], strict=True)
    before, after = (f"{nll:.3f} (place {place})" for nll, place in moved)
    yield visible(
        f"{row['name']}: {row['reordered']:,} of {row['pairs']:,} pairs change their order; "
        f"most changed: {worst['id']}, {before} to {after}"
    )
    if picks["changed"]:
        of_all = f"{picks['changed']:,} of {picks['questions']:,}"
        yield f"  another answer is the most familiar to {of_all} questions:"
    for pick in picks["shown"]:
        yield visible(f"    {pick['to']} instead of {pick['from']}")


def _server(server: Mapping[str, Any]) -> Iterator[str]:
    closest = (
        f"closest to {server['closest']}: size {server['mean_abs']:.4f}, worst answer "
        f"{server['answer_max_abs']:.3f}"
    )
    if not server["has_adapter"]:
        yield visible(f"{server['url']} computes WITHOUT the adapter, {closest}")
    else:
        verdict = _VERDICTS[server["is_within"]]
        yield visible(f"{server['url']} is {closest}; tolerated: {_limits(server)}: {verdict}")
