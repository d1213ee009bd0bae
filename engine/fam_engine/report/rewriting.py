"""Rewriting on a terminal: what a dry run foresees, and the yield of a run.

In: the forecast or the summary as plain values. Out: text through rich, readable at 80 columns. A yield has its 95 %
interval below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fam_engine.report.forecast import duration
from fam_engine.report.wording import MAX_ROWS, MISSING, confinement, percent, short_names, visible

_SOURCE_WIDTH = 28
REASON_MEANINGS = {
    "wrong_answer": "another final answer",
    "no_final_answer": "no final answer found",
    "unjudged": "could not be judged",
    "mentions_reference": "speaks of the given answer",
    "copy": "the given answer, word for word",
    "bare": "a final answer without its working",
    "empty": "no text",
    "length": "cut at --max-new-tokens",
    "nonfinite": "the model gave no finite numbers",
    "crash": "the process died or memory ran out",
    "prompt": "no prompt, or one too long",
    "no_reference": "no final answer to verify against",
}


def print_rewriting_forecast(forecast: Mapping[str, Any], console: Console) -> None:
    """Print what a job would do.

    Args:
        forecast: The fields of `RewriteForecast`.
        console: Where to print.
    """
    least, most = forecast["candidates"]
    tokens = forecast["prompt_tokens"]
    lines = [
        *([] if forecast["prompt"] is None else ["the first prompt:", visible(forecast["prompt"])]),
        f"{forecast['num_records']:,} records"
        + "".join(f", {count:,} {code}" for code, count in forecast["quarantined"].items()),
        f"{forecast['gold']:,} with a gold answer, {forecast['unverifiable']:,} without any final "
        "answer, which keep theirs",
        f"tokens a prompt: mean {tokens['mean']:.0f}, at most {tokens['max']:,}; "
        f"{forecast['cramped']:,} leave less than --max-new-tokens",
        f"{least:,} candidates if the first are verified, {most:,} if none is; at most "
        f"{forecast['tokens'][0]:,} to {forecast['tokens'][1]:,} tokens to write",
        f"about {duration(forecast['seconds'][0])} to {duration(forecast['seconds'][1])} if every text is as "
        "long as allowed (from a trial of this machine; judging not counted)",
    ]
    for line in lines:
        _line(console, line)


def print_rewriting_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print what a run came to.

    Args:
        summary: What `summary.json` holds.
        console: Where to print.
    """
    records = summary["records"]
    kept = records["rewritten"] + records["fell_back"]
    _line(
        console,
        f"{records['rewritten']:,} of {kept:,} answers rewritten "
        f"({summary['settings']['method']}); {records['fell_back']:,} stay as given.",
    )
    console.print(_source_table(summary))
    console.print(_attempt_table(summary))
    for title, counts in (
        ("candidates rejected", summary["rejected"]),
        ("answers kept as given", summary["fell_back"]),
    ):
        if counts:
            console.print(_count_table(title, counts))
    for code, count in records["quarantined_by_code"].items():
        _line(console, f"{count:,} records left out: {code}")
    for text in confinement(summary):
        _line(console, text)


def _source_table(summary: Mapping[str, Any]) -> Table:
    sources = summary["sources"]
    with_own = any(entry["own_similarity"] is not None for entry in sources.values())
    table = _table("source")
    table.columns[0].max_width = _SOURCE_WIDTH
    table.columns[0].no_wrap = False
    table.columns[0].overflow = "fold"
    labels = ["records", "rewritten", "yield", "words\nshared"]
    for label in [*labels, *(["with own\nattempt"] if with_own else [])]:
        table.add_column(label, justify="right")
    for name, label in short_names(list(sources)[:MAX_ROWS], 2 * _SOURCE_WIDTH, mark="..").items():
        table.add_row(*_cells(label, sources[name], with_own=with_own))
    if len(sources) > MAX_ROWS:
        table.add_row(Text(f"and {len(sources) - MAX_ROWS:,} more"))
    return table


def _cells(name: str, entry: Mapping[str, Any], *, with_own: bool) -> list[Text]:
    estimate = entry["yield"]
    share = Text(percent(estimate["value"]))
    if estimate["low"] is not None and estimate["high"] is not None:
        limits = f"{100 * estimate['low']:.1f}-{100 * estimate['high']:.1f}"
        share.append(f"\n{limits}", style="dim")
    cells = [Text(name), Text(f"{entry['n']:,}"), Text(f"{entry['rewritten']:,}"), share]
    alike = ["similarity", *(["own_similarity"] if with_own else [])]
    return [*cells, *(Text(_share(entry[name])) for name in alike)]


def _share(value: float | None) -> str:
    return MISSING if value is None else percent(value)


def _attempt_table(summary: Mapping[str, Any]) -> Table:
    table = _table("attempt")
    for label in ("candidates", "verified", "of these"):
        table.add_column(label, justify="right")
    has_own = summary["settings"]["method"] == "minimum-change"
    for row in summary["attempts"]:
        name = f"{row['attempt']}" + (": own answer" if has_own and row["attempt"] == 0 else "")
        share = percent(row["verified"] / row["candidates"])
        table.add_row(name, f"{row['candidates']:,}", f"{row['verified']:,}", share)
    return table


def _count_table(title: str, counts: Mapping[str, int]) -> Table:
    table = _table(title)
    table.add_column("", justify="right")
    for reason, count in counts.items():
        table.add_row(REASON_MEANINGS.get(reason, reason), f"{count:,}")
    return table


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
