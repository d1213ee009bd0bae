"""How far a job is, on standard error: a live bar on a terminal, a line now and then elsewhere.

In: phases and counts. Out: rate and time left. Standard output stays free for results.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from fam_engine.report.forecast import duration
from fam_engine.report.wording import visible

# On a log file one line this often is enough.
_SECONDS_A_LINE = 10.0


class JobProgress:
    """Shows the phases of a job. Use as a context manager.

    Args:
        quiet: Show nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._live = self._console.is_terminal and not quiet
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._phase = _Phase("", None, "")

    def __enter__(self) -> JobProgress:
        """Start showing."""
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing."""
        self._bar.stop()

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Begin a phase of `total` units; None: not known."""
        self._phase = _Phase(label, total, unit)
        if not self._live:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(label, total=total, count="")

    def advance(self, count: int, detail: str = "") -> None:
        """Note that so many more units are done; `detail` is shown beside the count."""
        self._phase.done += count
        self._phase.detail = detail
        if self._live and self._task is not None:
            self._bar.update(self._task, advance=count, count=self._phase.text())
        elif time.monotonic() - self._phase.last_line > _SECONDS_A_LINE:
            self._phase.last_line = time.monotonic()
            text = f"{self._phase.label}: {self._phase.text()}"
            self._console.print(text, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Show a line of news."""
        self._console.print(visible(text), markup=False, soft_wrap=True)


class _Phase:
    """Counts of the phase that runs now."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self.detail = ""
        self.started = self.last_line = time.monotonic()

    def text(self) -> str:
        """Give `done/total unit, rate, time left`, then the detail."""
        seconds = max(time.monotonic() - self.started, sys.float_info.epsilon)
        rate = self.done / seconds
        of_total = f"/{self.total:,}" if self.total else ""
        left = ""
        if self.total and self.done:
            left = f", {duration((self.total - self.done) / rate)} left"
        detail = f", {self.detail}" if self.detail else ""
        return f"{self.done:,}{of_total} {self.unit}, {_rate(rate)}{left}{detail}"


def _rate(rate: float) -> str:
    """Say a rate so that slow work does not look like none."""
    if rate >= 10:
        return f"{rate:,.0f} a second"
    return f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.2g} a minute"
