"""Generating on a terminal: what a dry run foresees, what a run came to.

In: the forecast or the summary as plain values. Out: lines. Figures that are estimates say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from fam_engine.report.forecast import duration
from fam_engine.report.terminal import print_lines
from fam_engine.report.wording import confinement, gib, percent, visible

_REASONS = {
    "eos": "ended by the model",
    "stop": "ended by a stop string",
    "length": "cut at --max-new-tokens",
}


def print_generation_forecast(forecast: Mapping[str, Any], console: Console) -> None:
    """Print what a job would do.

    Args:
        forecast: The fields of `GenerateForecast`.
        console: Where to print.
    """
    lengths = forecast["lengths"]
    lines = [
        f"{forecast['num_records']:,} records to answer, {forecast['num_samples']:,} answers each"
        + "".join(f", {count:,} {code}" for code, count in forecast["quarantined"].items()),
        f"tokens a prompt: mean {lengths['mean']:.0f}, median {lengths['median']:.0f}, 95 % below "
        f"{lengths['p95']:.0f}, at most {lengths['max']:.0f}",
        f"{forecast['prompt_tokens']:,} prompt tokens, at most {forecast['most_tokens']:,} to "
        "write",
        f"about {gib(forecast['memory_bytes'])} GiB of memory (estimate)",
        f"about {duration(forecast['seconds'])} if every answer is as long as allowed (from a trial "
        "of this machine)",
    ]
    print_lines(lines, console)


def print_generation_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print what came of a job.

    Args:
        summary: What `summary.json` holds.
        console: Where to print.
    """
    records, samples = summary["records"], summary["samples"]
    written = samples["written"]
    lines = [
        f"{written:,} answers to {records['generated']:,} records by "
        f"{visible(summary['settings']['source'])}",
        *(
            f"  {count:,} {_REASONS.get(reason, reason)} ({percent(count / written)})"
            for reason, count in summary["finish_reasons"].items()
        ),
        f"{summary['tokens']['generated']:,} tokens, "
        f"{summary['performance']['tokens_per_second']:,.0f} a second",
    ]
    if samples["judged"]:
        share = percent(samples["correct"] / samples["judged"])
        lines.append(f"{samples['correct']:,} of {samples['judged']:,} judged correct ({share})")
    if samples["empty"]:
        lines.append(f"{samples['empty']:,} answers without a text left out")
    lines += [
        f"{count:,} records left out: {code}"
        for code, count in records["quarantined_by_code"].items()
    ]
    lines += [f"{count:,} records flagged {flag}" for flag, count in summary["flags"].items()]
    lines += confinement(summary)
    print_lines(lines, console)
