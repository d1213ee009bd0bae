"""A selection in words and one table, for the terminal.

In: the dictionary of `summary.json`. Out: text through rich, readable at 80 columns. Findings say how sure they are,
and cautions come last, where they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fam_engine.measure.statistics import MIN_GROUPS
from fam_engine.report.wording import (
    FEW_GROUPS,
    MAX_ROWS,
    MISSING,
    interval,
    listed,
    number,
    percent,
    short_names,
    unread_rows,
    visible,
)

_SOURCE_WIDTH = 24
_MAX_NAMES = 4
# Share of records without the metric beyond which the choice is among the rest.
_MOST_UNDEFINED = 0.05
_PER = {
    "question": "for each question",
    "source": "of the whole source",
    "all": "of all records",
}
REASON_MEANINGS = {
    "metric_undefined": "the metric is undefined",
    "incorrect": "the answer is wrong",
    "correctness_unknown": "not known to be correct",
    "too_short": "shorter than --min-tokens",
    "too_long": "longer than --max-tokens",
    "not_picked": "the metric picked others",
    "source_limit": "its source had its share",
    "over_budget": "--budget was reached",
}


def print_selection(summary: Mapping[str, Any], console: Console) -> None:
    """Print what was selected.

    Args:
        summary: From `jobs.selection.job.run_select`.
        console: Where to print.
    """
    records = summary["records"]
    _line(
        console,
        f"{records['selected']:,} of {records['read']:,} records selected: "
        f"{_rule(summary['choice'])}.",
    )
    console.print(_source_table(summary))
    _print_profile(summary, console)
    for text in findings(summary):
        _line(console, text)
    for title, counts, meanings in (
        ("dropped", records["dropped_by_reason"], REASON_MEANINGS),
        ("left out", records["quarantined_by_code"], {}),
    ):
        if counts:
            console.print(_count_table(title, counts, meanings))
    for caution in summary["cautions"]:
        _line(console, _caution(caution), "yellow")
    for text in unread_rows(summary["test"]):
        _line(console, text, "yellow")


def _rule(choice: Mapping[str, Any]) -> str:
    per = _PER[choice["per"]]
    if "band" in choice:
        low, high = choice["band"]
        return f"{choice['metric']} between its {low:g} and {high:g} quantiles {per}"
    return f"the {choice['pick']} {choice['metric']} {per}"


def _source_table(summary: Mapping[str, Any]) -> Table:
    comparison = summary["comparison"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("source", overflow="fold", max_width=_SOURCE_WIDTH)
    for label in ("records", "candidates", "selected"):
        table.add_column(label, justify="right")
    if comparison:
        average = summary["choice"]["average"].replace(" ", "\n", 1)
        table.add_column(average, justify="right")
        table.add_column("would come\nfirst", justify="right")
    names = _ordered(summary)
    for name, label in short_names(names[:MAX_ROWS], 2 * _SOURCE_WIDTH, mark="..").items():
        counts = summary["sources"][name]
        cells = [Text(label)]
        cells += [Text(f"{counts[key]:,}") for key in ("n", "candidates", "selected")]
        if comparison:
            entry = comparison["sources"][name]
            cells += [_value(entry), Text(percent(entry["probability_first"]))]
        table.add_row(*cells)
    if len(names) > MAX_ROWS:
        table.add_row(Text(f"and {len(names) - MAX_ROWS:,} more"))
    return table


def _ordered(summary: Mapping[str, Any]) -> list[str]:
    """Order sources by the comparison, or by how much was selected of them."""
    comparison, sources = summary["comparison"], summary["sources"]
    if not comparison:
        return sorted(sources, key=lambda name: -sources[name]["selected"])
    sign = -1.0 if comparison["pick"] == "highest" else 1.0
    values = {name: entry["value"] for name, entry in comparison["sources"].items()}
    return sorted(values, key=lambda name: (values[name] is None, sign * (values[name] or 0.0)))


def _value(entry: Mapping[str, Any]) -> Text:
    text = Text(number(entry["value"]))
    low, high = entry["interval"]
    if low is not None and high is not None:
        text.append(f"\n{number(low)}-{number(high)}", style="dim")
    return text


def _print_profile(summary: Mapping[str, Any], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    choice = summary["choice"]
    average = f"{choice['metric']} ({choice['average']})"
    for label in (average, "tokens an answer", "correct"):
        table.add_column(label, justify="right")
    for label in ("all", "selected"):
        profile = summary[label]
        correct = profile["correct"]
        table.add_row(
            label,
            _sure(profile["metric"]),
            _sure(profile["tokens_per_response"]),
            MISSING if correct is None else percent(correct["value"]),
        )
    console.print(table)


def _sure(estimate: Mapping[str, float | None]) -> str:
    limits = interval(estimate)
    return number(estimate["value"]) + (f" ({limits})" if limits else "")


def findings(summary: Mapping[str, Any]) -> list[str]:
    """Say how sure the comparison of sources is, and where there was nothing to choose."""
    found = []
    questions = summary["questions"]
    if summary["choice"]["per"] == "question":
        alone = questions["with_candidates"] - questions["with_a_choice"]
        if alone:
            found.append(
                f"{alone:,} of {questions['with_candidates']:,} questions had one candidate only, "
                "so nothing was chosen there."
            )
    records = summary["records"]
    undefined = records["dropped_by_reason"].get("metric_undefined", 0)
    if undefined > _MOST_UNDEFINED * records["read"]:
        found.append(
            f"{undefined:,} of {records['read']:,} records have no {summary['choice']['metric']} and could not be "
            "selected; where those are of one kind (the long ones, often), so is what is left."
        )
    comparison = summary["comparison"]
    if comparison and comparison["first"] is not None and comparison["pairs"]:
        found += _compared(summary, comparison)
    return found


def _compared(summary: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[str]:
    first = visible(comparison["first"])
    named: dict[str, list[str]] = {}
    for pair in comparison["pairs"]:
        named.setdefault(pair["verdict"], []).append(visible(pair["source"]))
    found = []
    if alike := named.get("not distinguishable"):
        found.append(
            f"Not distinguishable: on the questions they share, {first} and {listed(alike)} do "
            "not differ by more than chance."
        )
    if ahead := named.get("ahead"):
        found.append(f"On the questions they share, {listed(ahead)} comes before {first}.")
    if apart := named.get("no shared questions"):
        found.append(
            f"{listed(apart)} and {first} share no questions, so a difference may come from the "
            "questions."
        )
    if few := named.get("too few questions"):
        found.append(
            f"{listed(few)} and {first} share fewer than {MIN_GROUPS} questions, so a difference may "
            "be chance."
        )
    if set(named) == {"behind"}:
        found.append(f"{first} comes first, more surely than chance would have it.")
    counts = [entry["num_groups"] for entry in comparison["sources"].values()]
    if min(count for count in counts if count) < FEW_GROUPS:
        found.append(f"Fewer than {FEW_GROUPS} questions are too few to lean on an interval.")
    return found


def _count_table(title: str, counts: Mapping[str, int], meanings: Mapping[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(title)
    table.add_column("records", justify="right")
    if meanings:
        table.add_column("because")
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        row = [visible(name), f"{count:,}"]
        table.add_row(*map(Text, [*row, meanings[name]] if meanings else row))
    return table


def _caution(caution: Mapping[str, Any]) -> str:
    if "pairs" in caution:
        shown = "; ".join(
            f"{visible(pair['sources'][0])} and {visible(pair['sources'][1])} "
            f"({pair['num_shared']:,} answers)"
            for pair in caution["pairs"][:_MAX_NAMES]
        )
        return f"Caution, {caution['code']}: {caution['text']}: {shown}."
    shown = ", ".join(visible(name) for name in caution["ids"][:3])
    return (
        f"Caution, {caution['code']}: {caution['count']:,} selected records, {caution['text']} "
        f"(such as {shown})."
    )


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style))
