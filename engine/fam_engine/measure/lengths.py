"""How long texts are, in the few numbers that a forecast shows.

In: tokens of each text. Out: plain values for JSON. `tokenize`, whose subject lengths are, gives more percentiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def typical_lengths(counts: npt.NDArray[np.integer[Any]]) -> dict[str, float]:
    """Give mean, median, 95th percentile and maximum of `counts`, which has at least one."""
    median, p95 = np.quantile(counts, [0.5, 0.95])
    return {
        "mean": float(counts.mean()),
        "median": float(median),
        "p95": float(p95),
        "max": float(counts.max()),
    }
