"""A dry run's forecast for the terminal.

In: the forecast as plain values. Out: lines. Figures that are estimates say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from fam_engine.report.wording import visible


def print_forecast(forecast: Mapping[str, Any], console: Console) -> None:
    """Print what a job would do.

    Args:
        forecast: The fields of `ScoreForecast`.
        console: Where to print.
    """
    tokens = forecast["tokens"]
    saved = 1.0 - tokens["computed"] / max(tokens["without_sharing"], 1)
    lines = [
        f"{forecast['num_records']:,} records to score"
        + "".join(f", {count:,} {code}" for code, count in forecast["quarantined"].items()),
        f"{tokens['prompt']:,} prompt and {tokens['response']:,} response tokens",
        *(_lengths(name, values) for name, values in forecast["lengths"].items()),
        f"{tokens['computed']:,} tokens to compute; shared prompts save {saved:.0%} of "
        f"{tokens['without_sharing']:,}",
        f"{forecast['max_tokens_per_batch']:,} tokens a batch",
        f"about {forecast['memory_bytes'] / 2**30:.2f} GiB of memory (estimate)",
        f"about {duration(forecast['seconds'])}{_shared(forecast)} (from a probe of this machine)",
        "longest records: "
        + ", ".join(f"{visible(name)} ({count:,} tokens)" for name, count in forecast["longest"]),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _shared(forecast: Mapping[str, Any]) -> str:
    if forecast["num_workers"] == 1:
        return ""
    return f" on {forecast['num_workers']:,} workers, which share {forecast['num_parts']:,} parts"


def _lengths(name: str, values: Mapping[str, float]) -> str:
    return (
        f"tokens a {name}: mean {values['mean']:.0f}, median {values['median']:.0f}, "
        f"95 % below {values['p95']:.0f}, at most {values['max']:.0f}"
    )


def duration(seconds: float) -> str:
    """Write a time roughly."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
