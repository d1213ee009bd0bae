"""The state of a job on a terminal: a few lines.

In: the values of a `JobStatus`. Out: text through rich.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from fam_engine.report.forecast import duration
from fam_engine.report.wording import visible

_STYLES = {"running": "green", "finished": "green", "diverged": "red"}


def print_status(status: Mapping[str, Any], console: Console, *, now: float | None = None) -> None:
    """Print how far a job is.

    Args:
        status: From `jobs.status.job.as_values`.
        console: Where to print.
        now: Seconds since the epoch; None: now.
    """
    state, holder = status["state"], status["holder"]
    line = Text(visible(f"{status['out']}: {status['command']}, "))
    line.append(state, style=_STYLES.get(state, "yellow"))
    if holder is not None:
        line.append(visible(f" (process {holder['process']} on {holder['host']})"))
    console.print(line)
    console.print(Text(f"  {_progress(status['progress'])}"))
    if status["parts"] is not None:
        console.print(Text(f"  {_parts(status['parts'], len(status['workers']))}"))
    ago = (time.time() if now is None else now) - status["changed"]
    console.print(Text(f"  last progress kept {_ago(ago)}"))
    for code, count in status["quarantined"].items():
        console.print(Text(visible(f"  left out: {count:,} with {code}")))
    if status["step"] is not None:
        print_status(status["step"], console, now=now)
    console.print(Text(visible(f"  to do: {status['advice']}")))


def _progress(progress: Mapping[str, Any]) -> str:
    done, total, seconds = progress["done"], progress["total"], progress["seconds"]
    of = f" of {total:,}" if total is not None else ""
    share = f" ({done / total:.0%})" if total else ""
    took = f", {duration(seconds)} of computing" if seconds else ""
    return f"{progress['phase']}: {done:,}{of} {progress['unit']}{share}{took}"


def _parts(parts: Mapping[str, int], num_workers: int) -> str:
    counts = ", ".join(f"{parts[state]:,} {state}" for state in ("claimed", "stale", "waiting"))
    return f"{num_workers} workers; parts: {counts}"


def _ago(seconds: float) -> str:
    return "just now" if seconds < 1 else f"{duration(seconds)} ago"
