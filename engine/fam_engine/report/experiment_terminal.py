"""A study on a terminal: its verdict and one table a task; a dry run as a list of steps.

In: the dictionary of `results.json`, or a forecast. Out: text through rich, readable at 80 columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fam_engine.report import experiment_words as words
from fam_engine.report.forecast import duration
from fam_engine.report.wording import MISSING, number, percent, short_names, visible

_NAME_WIDTH: Final = 20


def print_experiment(results: Mapping[str, Any], console: Console) -> None:
    """Print what was found.

    Args:
        results: What `results.json` holds.
        console: Where to print.
    """
    for cell in results["cells"]:
        console.print(Text(visible(words.cell_name(results, cell)), style="bold"))
        console.print(_table(cell))
        remarks = words.cell_remarks(cell, len(results["settings"]["seeds"]))
        for text in [*words.cell_findings(cell), *remarks]:
            console.print(Text(visible(text)))
        console.print()
    console.print(Text(visible(words.headline(results)), style="bold"))
    for kind, count in results["left_out"].items():
        console.print(Text(f"not begun, the time budget was spent: {count} {kind}", style="yellow"))


def _table(cell: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("variant", overflow="fold", max_width=_NAME_WIDTH)
    for label in ("perplexity", "tokens", "right", visible(cell["task"]), "other tasks"):
        table.add_column(label, justify="right", overflow="fold")
    own = cell["base"].get(cell["task"])
    others = [base["value"] for task, base in cell["base"].items() if task != cell["task"]]
    before = [
        MISSING if own is None else percent(own["value"]),
        percent(sum(others) / len(others)) if others else MISSING,
    ]
    table.add_row("before training", "", "", "", *before)
    for name, label in short_names(list(cell["variants"]), 2 * _NAME_WIDTH, mark="..").items():
        entry = cell["variants"][name]
        perplexity = entry["perplexity"]
        table.add_row(
            Text(label),
            number(perplexity["value"]) if perplexity else MISSING,
            number(entry["texts"]["tokens"]),
            percent(entry["texts"]["correct"]),
            _accuracy(entry["in_domain"]),
            _accuracy(entry["retention"]),
        )
    return table


def _accuracy(entry: Mapping[str, Any] | None) -> Text:
    if entry is None:
        return Text(MISSING)
    text = Text(percent(entry["value"]))
    text.append(f"\n{100 * entry['low']:.0f}-{100 * entry['high']:.0f}", style="dim")
    return text


def print_study_forecast(forecast: Mapping[str, Any], console: Console) -> None:
    """Print the steps of a study, which are done, and what the others will cost.

    Args:
        forecast: From `jobs.experiment.forecast`.
        console: Where to print.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for label in ("step", "about"):
        table.add_column(label, overflow="fold")
    table.add_column("time", justify="right")
    table.add_column("")
    for step in forecast["steps"]:
        about, state = Text(visible(step["label"])), "done" if step["done"] else ""
        table.add_row(step["kind"], about, duration(step["seconds"]), state)
    console.print(table)
    done = sum(step["done"] for step in forecast["steps"])
    left = duration(forecast["seconds_left"])
    console.print(
        f"{done} of {len(forecast['steps'])} steps done; the others take about {left} (estimate)",
        highlight=False,
    )
    budget = forecast["budget_seconds"]
    if budget is not None and forecast["seconds_done"] + forecast["seconds_left"] > budget:
        console.print(
            Text(f"more than the budget of {duration(budget)}: the last seeds may be left out"),
            style="yellow",
        )
