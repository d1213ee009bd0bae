"""An evaluation on a terminal: accuracy by task and model, what differs, what to beware of.

In: the summary of an evaluation, or its forecast. Out: text through rich, readable at 80 columns. Beyond four models
the table is printed in parts, the base model in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fam_engine.report.evaluation_words import BASE, cautions, findings, names, overlap
from fam_engine.report.forecast import duration
from fam_engine.report.terminal import print_lines
from fam_engine.report.wording import percent, points, unread_rows, visible

_TASK_WIDTH: Final = 20
_ADAPTERS_A_TABLE: Final = 3
_STYLES: Final = {"better": "green", "worse": "red", "within noise": "dim"}


def print_evaluation(summary: Mapping[str, Any], console: Console) -> None:
    """Print what was found.

    Args:
        summary: What `summary.json` holds.
        console: Where to print.
    """
    others = [name for name in names(summary) if name != BASE]
    first = [BASE] if BASE in names(summary) else []
    title = "Accuracy, 95 % interval" + (
        ", points against the base model" if first and others else ""
    )
    console.print(title, highlight=False)
    for start in range(0, max(len(others), 1), _ADAPTERS_A_TABLE):
        console.print(_matrix(summary, [*first, *others[start : start + _ADAPTERS_A_TABLE]]))
    for text in findings(summary):
        console.print(Text(text))
    for text in cautions(summary):
        console.print(Text(text, style="yellow"))
    if counts := summary["records"]["quarantined_by_code"]:
        listed = ", ".join(f"{count:,} {code}" for code, count in counts.items())
        console.print(Text(f"left out: {listed}", style="yellow"))


def _matrix(summary: Mapping[str, Any], shown: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("task", no_wrap=True, max_width=_TASK_WIDTH)
    table.add_column("questions", justify="right")
    for name in shown:
        table.add_column(visible(name), justify="right", overflow="fold", max_width=14)
    for task, entry in summary["tasks"].items():
        label = Text(_clipped(visible(task)), style="bold")
        label.append(f"\n{', '.join(entry['kinds'])}", style="not bold dim")
        cells = [_cell(entry["models"][name]) for name in shown]
        table.add_row(label, f"{entry['n']:,}", *cells)
    if summary["overall"]:
        table.add_section()
        cells = [_cell(summary["overall"][name]) for name in shown]
        table.add_row(Text("mean over tasks", style="bold"), "", *cells)
    return table


def _cell(entry: Mapping[str, Any]) -> Text:
    text = Text(percent(entry["accuracy"]))
    text.append(f"\n{_short_limits(entry)}", style="dim")
    if versus := entry["versus_base"]:
        # Of the mean over tasks there is an interval and no test.
        verdict = versus.get("verdict", "")
        word = "noise" if verdict == "within noise" else verdict
        text.append(
            f"\n{points(versus['difference'])} {word}".rstrip(), style=_STYLES.get(verdict, "")
        )
    return text


def _short_limits(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return "" if low is None else f"{100 * low:.1f}-{100 * high:.1f}"


def _clipped(name: str) -> str:
    return name if len(name) <= _TASK_WIDTH else f"{name[: _TASK_WIDTH - 2]}.."


def print_eval_forecast(forecast: Mapping[str, Any], console: Console) -> None:
    """Print what an evaluation would do.

    Args:
        forecast: The fields of `EvalForecast`.
        console: Where to print.
    """
    lines = [
        f"{len(forecast['models'])} models: " + ", ".join(map(visible, forecast["models"])),
        *(_task_line(task, entry) for task, entry in forecast["tasks"].items()),
        *(f"left out: {count:,} {code}" for code, count in forecast["quarantined"].items()),
        f"a model: {forecast['prompt_tokens']:,} prompt tokens, {forecast['choice_tokens']:,} of choices, "
        f"at most {forecast['most_tokens']:,} to be written",
        f"about {duration(forecast['seconds'])} for all models if every answer is as long as allowed (from a "
        "trial of this machine; judging not counted)",
        *map(overlap, forecast["overlap"]),
        *unread_rows(forecast["overlap"]),
    ]
    print_lines(lines, console)


def _task_line(task: str, entry: Mapping[str, Any]) -> str:
    kinds = ", ".join(entry["kinds"])
    return f"{visible(task)}: {entry['n']:,} questions ({kinds}; {', '.join(entry['methods'])})"
