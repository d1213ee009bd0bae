"""How sure we are of an accuracy measured with a few seeds on the same questions.

In: tables of results, a row a training seed, a column a question. Out: their mean with a 95 % interval that covers
both: other questions of the same kind, and other seeds. Seeds and questions are crossed, not nested: every seed's
model is asked the same questions. With results x[s, q],

    A = variance over questions of the mean over seeds / number of questions,
    B = variance over seeds of the mean over questions / number of seeds,

the variance of the mean is at most A + B in expectation (both hold the residual's share, counted twice, which errs on
the wide side; Cornfield and Tukey 1956, Ann. Math. Stat. 27, 907). The interval is Student's with the degrees of
freedom of Satterthwaite (1946, Biometrics Bull. 2, 110), so three seeds that disagree give a wide one. A bootstrap over
three seeds was rejected: it draws the same seed three times once in nine, and is too narrow by a factor of 0.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fam_engine.measure.statistics import Estimate, Floats
from fam_engine.measure.student import student_quantile

# Means of equal shares may differ by so much.
_ROUNDING = 1e-12


def crossed_mean(tables: Sequence[Floats]) -> Estimate:
    """Estimate the unweighted mean over tables of the mean of each.

    Args:
        tables: float64[S, Q] each, all with the same S >= 1; Q >= 1 may differ. Shares, or
            differences of shares, between -1 and 1.

    Returns:
        The mean and its interval. With one seed it covers questions alone. Of a table whose questions do not vary
        the variance says nothing: its mean may be off by 3 / Q (Hanley and Lippman-Hand 1983, the rule of three), and
        that of several such tables by most where all of it is in the smallest. This adds up, as squares, with what
        follows from the variances; the interval is then within -1 and 1.
    """
    if not tables:
        return Estimate(None)
    mean = float(np.mean([table.mean() for table in tables]))
    of_tables = [table.mean(axis=0) for table in tables]
    constant = [values for values in of_tables if np.ptp(values) < _ROUNDING]
    varying = [values for values in of_tables if np.ptp(values) >= _ROUNDING]
    of_seeds = _mean_variance(np.mean([table.mean(axis=1) for table in tables], axis=0))
    of_questions = sum(map(_mean_variance, varying)) / len(tables) ** 2
    half = _half_width(
        (of_questions, sum(len(values) - 1 for values in varying)), (of_seeds, len(tables[0]) - 1)
    )
    if not constant:
        return Estimate(mean, mean - half, mean + half)
    half = math.hypot(half, 3.0 / min(map(len, constant)) / len(tables))
    return Estimate(mean, max(mean - half, -1.0), min(mean + half, 1.0))


def accuracy(tables: Sequence[Floats]) -> Estimate:
    """Estimate an accuracy: `crossed_mean` of results that are 0 or 1, within 0 and 1."""
    found = crossed_mean(tables)
    if found.value is None or found.low is None or found.high is None:
        return found
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def _half_width(*parts: tuple[float, int]) -> float:
    """Give that of an interval from variances that add up, each with its degrees of freedom."""
    parts = tuple((variance, degrees) for variance, degrees in parts if variance > 0.0)
    if not parts:
        return 0.0
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / degrees for variance, degrees in parts)
    return student_quantile(total**2 / below) * math.sqrt(total)


def _mean_variance(values: Floats) -> float:
    """Give the variance of the mean of some values; 0 for one, which tells nothing of it."""
    return float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
