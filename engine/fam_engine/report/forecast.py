"""A dry run's forecast for the terminal.

In: the forecast as plain values. Out: lines. Figures that are estimates say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from fam_engine.report.terminal import print_lines
from fam_engine.report.wording import gib, visible


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
        _memory(forecast),
        f"about {duration(forecast['seconds'])}{_shared(forecast)} (from a probe of this machine)",
        "longest records: "
        + ", ".join(f"{visible(name)} ({count:,} tokens)" for name, count in forecast["longest"]),
    ]
    print_lines(lines + _cards(forecast), console)


def _shared(forecast: Mapping[str, Any]) -> str:
    if forecast["num_workers"] == 1:
        return ""
    return f" on {forecast['num_workers']:,} workers, which share {forecast['num_parts']:,} parts"


def _memory(forecast: Mapping[str, Any]) -> str:
    plan = forecast["device"]
    free = plan["weight_bytes"] + plan["left_bytes"]
    if not plan["max_tokens_per_batch"]:
        return (
            f"does not fit in memory: about {gib(plan['least_bytes'])} GiB at least (estimate), "
            f"{gib(free)} are free"
        )
    return f"about {gib(forecast['memory_bytes'])} GiB of memory (estimate), {gib(free)} are free"


def _cards(forecast: Mapping[str, Any]) -> list[str]:
    """Say how GPUs of usual sizes would do; nothing of a model that does well on all of them."""
    budgets = {plan["max_tokens_per_batch"] for plan in forecast["cards"].values()}
    if len(budgets) == 1 and 0 not in budgets:
        return []
    return ["on an NVIDIA GPU (estimates):"] + [
        f"  {size:>2} GB: {_card(plan, forecast['least_bytes_with_nf4'])}"
        for size, plan in forecast["cards"].items()
    ]


def _card(plan: Mapping[str, Any], least_with_nf4: int) -> str:
    weights, left = gib(plan["weight_bytes"]), gib(plan["left_bytes"])
    if plan["max_tokens_per_batch"]:
        tokens = plan["max_tokens_per_batch"]
        return f"{weights} GiB of weights, {left} left, {tokens:,} tokens a batch"
    usable = plan["weight_bytes"] + plan["left_bytes"]
    refusal = f"does not fit, {gib(plan['least_bytes'])} GiB at least of {gib(usable)} usable"
    return f"{refusal}; use --precision nf4" if least_with_nf4 <= usable else refusal


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
