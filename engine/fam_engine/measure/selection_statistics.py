"""Whole sets of answers compared by a metric: which source comes first, and is that more than chance.

In: per answer a numerator and a denominator, its source and its question. Out: each source's average
with a 95 % interval, the chance that it would come first on other questions like these, and the
paired difference to the source that does. Resamples draw questions (see `statistics`), and a pair is
compared on the questions both answer, so a source that was given the easier questions gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fam_engine.measure.familiarity import Averaged, Direction
from fam_engine.measure.sources import source_seed
from fam_engine.measure.statistics import (
    MIN_GROUPS,
    NUM_RESAMPLES,
    Estimate,
    Floats,
    Ints,
    ratio_estimate,
    resample_groups,
)
from fam_engine.measure.student import LEVEL, bootstrap_percentiles


def compare_sources(
    parts: Averaged,
    sources: Ints,
    groups: Ints,
    *,
    names: Sequence[str],
    pick: Direction,
    seed: int,
) -> dict[str, Any]:
    """Rank the sources by their average of a metric.

    Args:
        parts: How averages are made, n rows.
        sources: int64[n], source of each row as a place in `names`.
        groups: int64[n], question of each row, any numbering.
        names: Names of the sources.
        pick: Whether the lowest or the highest average comes first.
        seed: Seed of the resampling.

    Returns:
        `sources`: name -> n, num_groups, value, interval, probability_first (share of resamples in
        which it comes first; equal ones share a resample). `first`: the name, None without any value.
        `pick`: as given. `pairs`: source, num_groups shared with `first`, `difference` (source minus
        first, before the transform, in `unit`), verdict: `behind`, `ahead`, `not distinguishable`,
        `too few questions`, `no shared questions`.
    """
    rows = _rows_by_source(sources, names)
    known = ~np.isnan(parts.numerators)
    chances = _chances(parts, sources, groups, len(names), pick, seed)
    entries = {}
    for code, name in enumerate(names):
        estimate = _average(parts, rows[name], groups, source_seed(seed, name))
        entries[name] = {
            "n": len(rows[name]),
            "num_groups": len(np.unique(groups[rows[name][known[rows[name]]]])),
            "value": estimate.value,
            "interval": [estimate.low, estimate.high],
            "probability_first": float(chances[code]),
        }
    first = first_source(entries, pick)
    others = [name for name in names if entries[name]["value"] is not None and name != first]
    return {
        "sources": entries,
        "first": first,
        "pick": pick,
        "unit": parts.unit,
        "pairs": [_pair(parts, rows, groups, (name, str(first)), pick, seed) for name in others],
        "intervals": {"level": LEVEL, "resamples": NUM_RESAMPLES, "unit": "group", "seed": seed},
    }


def first_source(entries: dict[str, Any], pick: Direction) -> str | None:
    """Name the source whose average comes first; of equal ones the one that came first."""
    sign = 1.0 if pick == "lowest" else -1.0
    known = [name for name, entry in entries.items() if entry["value"] is not None]
    return min(known, key=lambda name: sign * entries[name]["value"], default=None)


def _rows_by_source(sources: Ints, names: Sequence[str]) -> dict[str, Ints]:
    order = np.argsort(sources, kind="stable")
    ends = np.cumsum(np.bincount(sources, minlength=len(names)))
    return dict(zip(names, np.split(order, ends[:-1]), strict=True))


def _average(parts: Averaged, rows: Ints, groups: Ints, seed: tuple[int, ...]) -> Estimate:
    resamples = resample_groups(groups[rows], seed=seed)
    return ratio_estimate(
        resamples,
        parts.numerators[rows],
        parts.denominators[rows],
        transform=parts.transform,
    )


def _chances(
    parts: Averaged, sources: Ints, groups: Ints, num_sources: int, pick: Direction, seed: int
) -> Floats:
    """Give, for each source, the share of resamples in which it comes first, float64[S]."""
    resamples = resample_groups(groups, seed=seed)
    ratios = np.full((len(resamples.weights), num_sources), np.inf)
    known = ~np.isnan(parts.numerators)
    sign = 1.0 if pick == "lowest" else -1.0
    for code in range(num_sources):
        rows = np.flatnonzero((sources == code) & known)
        values = sign * _ratios(parts, rows, resamples.units[rows], resamples.weights)
        ratios[:, code] = np.where(np.isnan(values), np.inf, values)
    if ratios.size == 0:
        return np.zeros(num_sources)
    # A resample that drew no values has no first.
    firsts = (ratios == ratios.min(axis=1, keepdims=True)) & (ratios < np.inf)
    shares = firsts / np.maximum(firsts.sum(axis=1, keepdims=True), 1)
    return np.asarray(shares.mean(axis=0))


def _ratios(parts: Averaged, rows: Ints, units: Ints, weights: Floats) -> Floats:
    """Give the ratio of some rows' sums on each resample.

    Args:
        parts: Numerators and denominators.
        rows: int64[k].
        units: int64[k], unit of each of these rows.
        weights: float64[B, U].

    Returns:
        float64[B], NaN where a resample drew none of the rows.
    """
    num_units = weights.shape[1]
    top = np.bincount(units, parts.numerators[rows], num_units)
    bottom = np.bincount(units, parts.denominators[rows], num_units)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios: Floats = (weights @ top) / (weights @ bottom)
    return ratios


def _pair(
    parts: Averaged,
    rows: dict[str, Ints],
    groups: Ints,
    names: tuple[str, str],
    pick: Direction,
    seed: int,
) -> dict[str, Any]:
    """Compare a source with the first one on the questions both answer."""
    known = ~np.isnan(parts.numerators)
    pair = [rows[name][known[rows[name]]] for name in names]
    shared = np.intersect1d(groups[pair[0]], groups[pair[1]])
    estimate = Estimate(None)
    if len(shared):
        of_shared = [part[np.isin(groups[part], shared)] for part in pair]
        seeds = source_seed(seed, *names)
        estimate = _difference(parts, of_shared, groups, shared, seeds)
    return {
        "source": names[0],
        "num_groups": len(shared),
        "difference": asdict(estimate),
        "verdict": _verdict(estimate, len(shared), pick),
    }


def _difference(
    parts: Averaged, pair: list[Ints], groups: Ints, shared: Ints, seed: tuple[int, ...]
) -> Estimate:
    """Estimate the ratio of the first rows minus that of the second, both on each resample."""
    resamples = resample_groups(shared, seed=seed)
    # One weight of 1 a unit, at the end, gives the value itself.
    weights = np.vstack([resamples.weights, np.ones(resamples.weights.shape[1])])
    ratios = [
        _ratios(parts, rows, resamples.units[np.searchsorted(shared, groups[rows])], weights)
        for rows in pair
    ]
    differences = ratios[0] - ratios[1]
    value = float(differences[-1])
    if not np.isfinite(value) or len(shared) < MIN_GROUPS:
        return Estimate(value if np.isfinite(value) else None)
    replicates = differences[:-1][np.isfinite(differences[:-1])]
    low, high = np.quantile(replicates, bootstrap_percentiles(len(shared)))
    return Estimate(value, float(low), float(high))


def _verdict(difference: Estimate, num_shared: int, pick: Direction) -> str:
    if num_shared == 0:
        return "no shared questions"
    if difference.low is None or difference.high is None:
        return "too few questions"
    low, high = difference.low, difference.high
    if pick == "highest":
        low, high = -high, -low
    if low > 0.0:
        return "behind"
    return "ahead" if high < 0.0 else "not distinguishable"
