"""Times of repeated runs: how fast, how steady, and whether that is slower than before.

In: seconds of runs that did the same work. Out: medians with their spread, rates, verdicts on a change. The median and
the 20th and 80th percentiles, not the mean: what else runs on a machine only ever adds time, and to single runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["faster", "slower", "within the limit"]


@dataclass(frozen=True)
class Timing:
    """What runs of one workload took.

    Attributes:
        seconds: Of every counted run.
        first_seconds: Of the very first run, nothing warmed up.
        amount: Units of work a run does.
        unit: What is counted, such as `tokens`.
        peak_bytes: Most memory held, loading included.
    """

    seconds: tuple[float, ...]
    first_seconds: float
    amount: int
    unit: str
    peak_bytes: int

    def median(self) -> float:
        """Give the median of the seconds."""
        return float(np.median(self.seconds))

    def spread(self) -> tuple[float, float]:
        """Give the 20th and the 80th percentile of the seconds."""
        low, high = np.percentile(self.seconds, (20, 80))
        return float(low), float(high)

    def rate(self) -> float:
        """Give units a second, by the median."""
        return self.amount / self.median()


@dataclass(frozen=True)
class Change:
    """A workload's speed now against another time.

    Attributes:
        workload: Its name.
        before: Units a second then.
        now: Units a second now.
        verdict: By the slow-down that is allowed.
    """

    workload: str
    before: float
    now: float
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """Speed now over speed then: below 1 is slower."""
        return self.now / self.before


def judge_change(workload: str, before: float, now: float, *, max_slowdown: float) -> Change:
    """Compare two speeds.

    Args:
        workload: Its name.
        before: Units a second then.
        now: Units a second now.
        max_slowdown: Share of the speed that may be lost, 0.1 for a tenth. As much gained is
            `faster`.
    """
    ratio = now / before
    verdict: Verdict = "within the limit"
    if ratio < 1 - max_slowdown:
        verdict = "slower"
    elif ratio > 1 / (1 - max_slowdown):
        verdict = "faster"
    return Change(workload, before, now, verdict)


def slower(changes: Sequence[Change]) -> list[Change]:
    """Give the changes that are slower than allowed."""
    return [change for change in changes if change.verdict == "slower"]
