"""Exported records on a terminal: how many, which not, and what goes into the other tool's settings.

In: the summary as plain values. Out: lines; the settings stand as they are to be copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from fam_engine.report.terminal import print_lines
from fam_engine.report.wording import visible

_WHERE = {
    "trl": "in your training script:",
    "axolotl": "in axolotl's YAML file:",
    "llama-factory": "in dataset_info.json beside the file (and `mask_history: true` in the training's "
    "YAML file, or every assistant turn is trained):",
}


def print_export(summary: Mapping[str, Any], console: Console) -> None:
    """Print what was exported.

    Args:
        summary: From `jobs.exporting.job.run_export`.
        console: Where to print.
    """
    print_lines(_lines(summary), console)


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    records = summary["records"]
    yield f"{records['exported']:,} of {records['read']:,} records exported"
    for row in summary["first_left_out"]:
        yield f"left out: {visible(row['file'])}:{row['line']}: {row['code']}: {visible(row['reason'])}"
    more = records["left_out"] - len(summary["first_left_out"])
    if more:
        yield f"left out: {more:,} more"
    yield _WHERE[summary["settings"]["format"]]
    yield from summary["tool_settings"].splitlines()
