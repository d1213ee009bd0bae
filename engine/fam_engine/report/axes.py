"""Logarithmic axes for the plots: their ends, their ticks, and smoothed distributions on them.

In: positive values as natural logarithms. Out: ranges, ticks, density curves; no drawing. Plots
work on logarithms throughout, since perplexity is exp(loss): equal distances mean equal loss, and
no value is ever too large to place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_NUM_BINS = 160
_MAX_TICKS = 6


@dataclass(frozen=True)
class LogAxis:
    """A stretch of a logarithmic axis.

    Attributes:
        low: Natural logarithm of the value at its start.
        high: The same at its end; above `low`.
        ticks: (natural logarithm, label) of each tick.
        num_outside: Values that lie beyond its ends.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    num_outside: int = 0

    def place(self, logs: Floats) -> Floats:
        """Give positions between 0 and 1; values beyond the ends sit on them."""
        return np.clip((logs - self.low) / (self.high - self.low), 0.0, 1.0)


def fit_axis(logs: Floats, *, keep_all: bool = False) -> LogAxis:
    """Fit an axis to values, leaving out the outer 0.25 % on either side and far outliers.

    Args:
        logs: float64[n] natural logarithms, finite and of values from 1 up; may be empty.
        keep_all: Leave none out: the values are few, and each is a finding.
    """
    if len(logs) == 0:
        return LogAxis(0.0, math.log(10), ((0.0, "1"), (math.log(10), "10")))
    ends = [0.0, 1.0] if keep_all else [0.0025, 0.9975]
    low, lower, upper, high = np.quantile(logs, [ends[0], 0.25, 0.75, ends[1]]).tolist()
    # One absurd value among a hundred would squeeze the rest into a corner.
    reach = math.inf if keep_all else 4.0 * (upper - lower) or math.inf
    low, high = max(low, lower - reach), min(high, upper + reach)
    margin = max(0.04 * (high - low), 0.05)
    low, high = max(low - margin, -0.05), high + margin
    outside = int(np.count_nonzero((logs < low) | (logs > high)))
    return LogAxis(low, high, _ticks(low, high), outside)


def _ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Choose two to six round values."""
    decades = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        logs = [d * math.log(10) + math.log(step) for d in decades for step in steps]
        inside = [log for log in logs if low <= log <= high]
        if 2 <= len(inside) <= _MAX_TICKS:
            return tuple((log, _label(log)) for log in inside)
    if len(inside) > _MAX_TICKS:
        kept = inside[:: math.ceil(len(inside) / _MAX_TICKS)]
        return tuple((log, _label(log)) for log in kept)
    return tuple((log, _label(log, digits=3)) for log in np.linspace(low, high, 5)[1:-1].tolist())


def _label(log: float, *, digits: int = 2) -> str:
    exponent = log / math.log(10)
    if exponent > 5 or exponent < -3:
        power = math.floor(exponent + 1e-9)
        return f"{10 ** (exponent - power):.{digits}g}e{power}"
    return f"{float(f'{math.exp(log):.{digits}g}'):,g}"


def density(logs: Floats, axis: LogAxis) -> Floats:
    """Smooth a distribution along an axis.

    Histogram of 160 bins under a Gaussian of Silverman's width, so the cost does not grow with n
    beyond one pass.

    Args:
        logs: float64[n] natural logarithms, n > 0.
        axis: Where to look.

    Returns:
        float64[160], scaled to a peak of 1.
    """
    # Values beyond the ends are left out, lest they pile up there.
    counts, _ = np.histogram(logs, _NUM_BINS, (axis.low, axis.high))
    spread = min(np.std(logs), np.subtract(*np.quantile(logs, [0.75, 0.25])) / 1.34) or np.std(logs)
    in_bins = 0.9 * spread * len(logs) ** -0.2 * _NUM_BINS / (axis.high - axis.low)
    width = min(max(in_bins, 1.5), _NUM_BINS / 4)
    reach = np.arange(-_NUM_BINS, _NUM_BINS + 1)
    smooth = np.convolve(counts, np.exp(-0.5 * (reach / width) ** 2))[_NUM_BINS:-_NUM_BINS]
    peak = smooth.max()
    return np.asarray(smooth / peak if peak > 0 else smooth, dtype=np.float64)
