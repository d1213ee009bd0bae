"""Two runs over the same records: how their figures differ, and how sure that is.

In: the joined rows of both. Out: a plain dictionary. Differences are second minus first, of each record paired with
itself; the intervals resample questions, as everywhere (`statistics`), but for `correct`: right and wrong are compared
as `eval` compares them (`accuracy`), so that both say the same of the same answers. A source's difference is the mean
over its records, not over its questions, so that it equals the difference of the two runs' own means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fam_engine.measure.accuracy import compare_clustered
from fam_engine.measure.replay import spearman
from fam_engine.measure.sources import by_source
from fam_engine.measure.statistics import (
    Estimate,
    Floats,
    Ints,
    Resamples,
    factorize,
    ratio_estimate,
    resample_groups,
)

_NUM_CHANGED = 10
# The metric that is right or wrong, 1 or 0.
_CORRECT: Final = "correct"
# What is not told from noise is not called equal, not even where no answer differs.
_VERDICTS: Final = {"better": "higher", "worse": "lower", "within noise": "not distinguishable"}


@dataclass(frozen=True)
class Metric:
    """A figure both runs have.

    Attributes:
        name: Of its column; `correct` is right or wrong, 1 or 0.
        first: float64[n], of the first run; NaN where undefined.
        second: Of the second.
    """

    name: str
    first: Floats
    second: Floats


def compare_rows(
    ids: Sequence[str],
    sources: Sequence[str],
    groups: Sequence[str],
    metrics: Sequence[Metric],
    *,
    seed: int,
) -> dict[str, Any]:
    """Compare joined rows.

    Args:
        ids: Name of each row, for the list of changes.
        sources: Its source.
        groups: Its question.
        metrics: The first one decides what `changed` and `rank_correlation` are about.
        seed: Of the resampling.

    Returns:
        `overall` and `sources` (by name, the largest `MAX_SOURCES`): n, num_groups, and by metric
        `first`, `second`, `difference` {value, low, high}, `verdict`, n. `pooled`, where there are more
        sources: the same of all others together, and `num_sources`. `rank_correlation`: Spearman's, by metric.
        `changed`: the rows with the largest differences, by size.
    """
    rows_of = by_source(list(sources))
    questions = factorize(list(groups))[0]
    pooled = {}
    if rows_of.num_pooled:
        entry = _entry(metrics, questions, rows_of.pooled, seed)
        pooled = {"pooled": {"num_sources": rows_of.num_pooled, **entry}}
    return {
        "overall": _entry(metrics, questions, np.arange(len(questions)), seed),
        "sources": {
            name: _entry(metrics, questions, rows, seed) for name, rows in rows_of.rows.items()
        },
        **pooled,
        "rank_correlation": {metric.name: _rank_correlation(metric) for metric in metrics},
        "changed": _changed(ids, sources, metrics[0]),
    }


def _entry(metrics: Sequence[Metric], questions: Ints, rows: Ints, seed: int) -> dict[str, Any]:
    asked = questions[rows]
    resamples = resample_groups(asked, seed=seed)
    figures = {}
    for metric in metrics:
        own = Metric(metric.name, metric.first[rows], metric.second[rows])
        known = ~np.isnan(own.second - own.first)
        is_correct = metric.name == _CORRECT
        difference, verdict = _of_correct(own, asked) if is_correct else _of_mean(own, resamples)
        figures[metric.name] = {
            "n": int(known.sum()),
            "first": _mean(own.first[known]),
            "second": _mean(own.second[known]),
            "difference": asdict(difference),
            "verdict": verdict,
        }
    return {"n": len(rows), "num_groups": len(np.unique(asked)), "metrics": figures}


def _of_correct(metric: Metric, questions: Ints) -> tuple[Estimate, str]:
    known = ~np.isnan(metric.second - metric.first)
    first, second = metric.first[known] > 0.0, metric.second[known] > 0.0
    paired = compare_clustered(second, first, questions[known])
    verdict = "undefined" if paired.n == 0 else _VERDICTS[paired.verdict]
    return paired.difference, verdict


def _of_mean(metric: Metric, resamples: Resamples) -> tuple[Estimate, str]:
    change = metric.second - metric.first
    difference = ratio_estimate(resamples, change, np.ones(len(change)))
    return difference, _verdict(difference)


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _verdict(difference: Estimate) -> str:
    if difference.value is None:
        return "undefined"
    if difference.low is None or difference.high is None:
        return "too few questions"
    if difference.low > 0.0:
        return "higher"
    if difference.high < 0.0:
        return "lower"
    return "equal" if difference.low == difference.high == 0.0 else "not distinguishable"


def _rank_correlation(metric: Metric) -> float | None:
    known = ~np.isnan(metric.first + metric.second)
    return spearman(metric.first[known], metric.second[known]) if known.any() else None


def _changed(ids: Sequence[str], sources: Sequence[str], metric: Metric) -> list[dict[str, Any]]:
    differences = metric.second - metric.first
    sizes = np.where(np.isnan(differences), 0.0, np.abs(differences))
    rows = [int(row) for row in np.argsort(-sizes, kind="stable")[:_NUM_CHANGED] if sizes[row] > 0]
    return [
        {
            "id": ids[row],
            "source": sources[row],
            "first": float(metric.first[row]),
            "second": float(metric.second[row]),
            "difference": float(differences[row]),
        }
        for row in rows
    ]
