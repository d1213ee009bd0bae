"""How sure we are of an average: bootstrap intervals that resample questions, not answers.

In: a column of values and the group (question) of each row. Out: `Estimate(value, low, high)`, 95 %
percentile intervals, wider where groups are few (`student.bootstrap_percentiles`). Answers to one
question resemble each other, so a resample draws whole groups with replacement; drawing answers
would give intervals that are too narrow. Every average here is a ratio of two sums over groups (a
mean, a token-weighted mean, a share), so one matrix product of resampling weights and group sums
gives all replicates. The median of a replicate is at most x exactly when its share of rows up to x
reaches one half, so its interval comes from the same product by binary search.

Memory and time are bounded: beyond `MAX_UNITS` groups, groups are dealt at random into that many
units and units are resampled. The variance of a sum over units equals that over groups in
expectation, so intervals stay honest; their ends only vary a little more (about 1.6 % of the width
at 2,000 units) than if every group could be drawn by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fam_engine.measure.student import bootstrap_percentiles

NUM_RESAMPLES = 1000
MAX_UNITS = 2000
# Fewest groups of an interval. Where nothing differs, n groups all fall on one side once in 2 ** (n - 1): of 2 half of
# the time, below 6 more often than once in 20.
MIN_GROUPS = 6

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; None where undefined, a bootstrap's below `MIN_GROUPS` groups."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Resamples:
    """Draws of groups with replacement, shared by all statistics of one set of records.

    Attributes:
        units: int64[n], the unit of each row.
        weights: float64[B, U], how often replicate b drew unit u.
    """

    units: Ints
    weights: Floats


def factorize(labels: npt.ArrayLike | list[object]) -> tuple[Ints, list[object]]:
    """Number labels by first appearance.

    Returns:
        int64[n] codes, and the label of each code.
    """
    values = labels.tolist() if isinstance(labels, np.ndarray) else labels
    assert isinstance(values, list)
    codes: dict[object, int] = {}
    numbers = (codes.setdefault(value, len(codes)) for value in values)
    return np.fromiter(numbers, np.int64, len(values)), list(codes)


def resample_groups(
    groups: Ints, *, seed: int | tuple[int, ...], num_resamples: int = NUM_RESAMPLES
) -> Resamples:
    """Draw the resamples of a set of records.

    Args:
        groups: int64[n], any numbering of the groups.
        seed: Seed of the generator; equal seeds and groups give equal draws.
        num_resamples: Number of replicates B.
    """
    generator = np.random.default_rng(seed)
    _, units = np.unique(groups, return_inverse=True)
    num_units = int(units.max(initial=-1)) + 1
    if num_units > MAX_UNITS:
        units = (generator.permutation(num_units) % MAX_UNITS)[units]
        num_units = MAX_UNITS
    weights = np.empty((num_resamples if num_units else 0, num_units))
    for row in weights:
        row[:] = np.bincount(generator.integers(0, num_units, num_units), minlength=num_units)
    return Resamples(units.astype(np.int64), weights)


def ratio_estimate(
    resamples: Resamples,
    numerators: Floats,
    denominators: Floats,
    *,
    transform: Callable[[Floats], Floats] | None = None,
) -> Estimate:
    """Estimate transform(sum of numerators / sum of denominators).

    Args:
        resamples: Draws for these rows.
        numerators: float64[n], NaN where a row has none.
        denominators: float64[n]; 1 for a mean, weights for a weighted mean.
        transform: Monotone function of the ratio, such as `numpy.exp`.

    Returns:
        The estimate; None where no row has values or the result is beyond float64.
    """
    known = ~np.isnan(numerators)
    units = resamples.units[known]
    num_units = resamples.weights.shape[1]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        top = np.bincount(units, numerators[known], num_units)
        bottom = np.bincount(units, denominators[known], num_units)
        ratios = np.append(
            resamples.weights @ top / (resamples.weights @ bottom), top.sum() / bottom.sum()
        )
        values = ratios if transform is None else transform(ratios)
    value = _finite(values[-1])
    num_drawn = np.count_nonzero(bottom)
    if value is None or num_drawn < MIN_GROUPS:
        return Estimate(value)
    # A replicate that drew none of the few groups with values says nothing.
    replicates = values[:-1][~np.isnan(values[:-1])]
    low, high = np.quantile(replicates, bootstrap_percentiles(num_drawn))
    return Estimate(value, _finite(low), _finite(high))


def median_estimate(resamples: Resamples, values: Floats) -> Estimate:
    """Estimate the median; infinite values count as large, NaN rows are left out."""
    known = ~np.isnan(values)
    order = np.argsort(values[known], kind="stable")
    ordered, units = values[known][order], resamples.units[known][order]
    if len(ordered) == 0:
        return Estimate(None)
    middle = ordered[[(len(ordered) - 1) // 2, len(ordered) // 2]]
    value = _finite(middle.mean())
    num_drawn = len(np.unique(units))
    if value is None or num_drawn < MIN_GROUPS:
        return Estimate(value)
    lowest, highest = bootstrap_percentiles(num_drawn)
    # The lower median bounds from below, the upper one from above.
    low = _first(len(ordered), lambda k: np.mean(_excess(resamples, units, k) >= 0) >= lowest)
    high = _first(len(ordered), lambda k: np.mean(_excess(resamples, units, k) > 0) >= highest)
    return Estimate(value, _finite(ordered[low]), _finite(ordered[high]))


def _excess(resamples: Resamples, units: Ints, k: int) -> Floats:
    """Count, per replicate, rows up to the k-th minus rows after it."""
    num_units = resamples.weights.shape[1]
    upto = np.bincount(units[: k + 1], minlength=num_units)
    after = np.bincount(units[k + 1 :], minlength=num_units)
    return resamples.weights @ (upto - after).astype(np.float64)


def _first(count: int, holds: Callable[[int], bool | np.bool_]) -> int:
    """Find the first k below `count` where a condition holds that then holds for all above."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def group_means(groups: Ints, values: Floats) -> tuple[Ints, Floats]:
    """Average the values of each group, leaving out NaN.

    Returns:
        int64[G] group numbers in ascending order, and float64[G] means.
    """
    known = ~np.isnan(values)
    present, inverse = np.unique(groups[known], return_inverse=True)
    sums = np.bincount(inverse, values[known], len(present))
    return present, sums / np.bincount(inverse, minlength=len(present))


def paired_difference(
    first: tuple[Ints, Floats], second: tuple[Ints, Floats], *, seed: int | tuple[int, ...]
) -> tuple[Estimate, int]:
    """Estimate the mean of first minus second over the groups both have.

    Args:
        first: (groups, values), each group once, as `group_means` gives them.
        second: The same of what it is compared with.
        seed: Seed of the resampling.

    Returns:
        The estimate, and the number of shared groups.
    """
    shared, in_first, in_second = np.intersect1d(first[0], second[0], True, return_indices=True)
    if len(shared) == 0:
        return Estimate(None), 0
    differences = first[1][in_first] - second[1][in_second]
    resamples = resample_groups(shared, seed=seed)
    return ratio_estimate(resamples, differences, np.ones(len(shared))), len(shared)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
