"""The averages of a scoring job: overall, by source, and between sources on shared questions.

In: the columns of the scores table. Out: a plain dictionary, ready for `summary.json` and the
report. Four averages of perplexity stand side by side because they answer different questions and
can disagree: the mean (ruled by outliers), the median, the geometric mean (exp of the mean loss an
answer) and the token-weighted one (exp of the mean loss a token).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from fam_engine.measure.accuracy import share_right
from fam_engine.measure.sources import by_source, source_seed
from fam_engine.measure.statistics import (
    NUM_RESAMPLES,
    Estimate,
    Floats,
    Ints,
    Resamples,
    factorize,
    group_means,
    median_estimate,
    paired_difference,
    ratio_estimate,
    resample_groups,
)
from fam_engine.measure.student import LEVEL

Column = npt.NDArray[Any] | Sequence[Any]
_NUMBERS = (
    "nll_sum",
    "nll_mean",
    "perplexity",
    "bits_per_byte",
    "rank_mean",
    "surprising_rate",
    "num_response_tokens",
    "correct",
    "ifd",
    "in_context_nll_mean",
)


def summarize(columns: Mapping[str, Column], *, seed: int) -> dict[str, Any]:
    """Summarize scored records.

    Args:
        columns: Columns of the scores table, all of length n: `source`, `group`, `nll_sum`,
            `nll_mean`, `perplexity`, `num_response_tokens`, and, where there, `bits_per_byte`,
            `rank_mean`, `surprising_rate`, `ifd`, `in_context_nll_mean`, `correct`, `flags`. None and
            NaN mean undefined. Without `group` every record is its own.
        seed: Seed of the resampling. The intervals of a source depend on its records and the seed
            alone.

    Returns:
        `overall` and `sources` (by name, in order of appearance, the largest `MAX_SOURCES`): n, num_scored, num_groups,
        num_response_tokens, `perplexity` (mean, median, geometric_mean, token_weighted),
        bits_per_byte, rank_surprisal_ratio, surprising_rate, tokens_per_response, each {value, low,
        high}; `ifd` and `in_context_perplexity` (geometric means) likewise, or None where no record
        has them; `correct` or None; `flags` as counts. `pooled`, where there are more sources: the
        same of all others together, and `num_sources`. `comparison`: see `_compare`. `intervals`:
        how they were made.
    """
    count = len(columns["source"])
    numbers = {name: _floats(columns.get(name), count) for name in _NUMBERS}
    # A perplexity beyond float64 is large, not missing: its mean is undefined, its median is not.
    overflown = np.isnan(numbers["perplexity"]) & ~np.isnan(numbers["nll_mean"])
    numbers["perplexity"][overflown] = np.inf
    groups = factorize(_listed(columns["group"]))[0] if "group" in columns else np.arange(count)
    sources = by_source(_listed(columns["source"]))
    flags = _listed(columns.get("flags", []))
    entries = {
        name: _entry(numbers, groups, flags, rows, source_seed(seed, name))
        for name, rows in sources.rows.items()
    }
    pooled = {}
    if sources.num_pooled:
        entry = _entry(numbers, groups, flags, sources.pooled, (seed,))
        pooled = {"pooled": {"num_sources": sources.num_pooled, **entry}}
    # A source that is everything has the same intervals as everything.
    alone = next(iter(entries.values())) if len(entries) == 1 and not pooled else None
    return {
        "overall": alone or _entry(numbers, groups, flags, np.arange(count), (seed,)),
        "sources": entries,
        **pooled,
        "comparison": _compare(entries, numbers["nll_mean"], groups, sources.rows, seed),
        "intervals": {"level": LEVEL, "resamples": NUM_RESAMPLES, "unit": "group", "seed": seed},
    }


def _listed(column: Column) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)


def _floats(column: Column | None, count: int) -> Floats:
    """Turn a column into float64[n] with NaN for what is missing."""
    if column is None:
        return np.full(count, np.nan)
    return np.array(column, dtype=np.float64)


def _entry(
    numbers: Mapping[str, Floats],
    groups: Ints,
    flags: list[Sequence[str] | None],
    rows: Ints,
    seed: tuple[int, ...],
) -> dict[str, Any]:
    """Summarize some of the rows."""
    part = {name: values[rows] for name, values in numbers.items()}
    resamples = resample_groups(groups[rows], seed=seed)
    tokens, ones = part["num_response_tokens"], np.ones(len(rows))
    scored = ~np.isnan(part["nll_mean"])

    def mean(values: Floats, transform: Callable[[Floats], Floats] | None = None) -> dict[str, Any]:
        return asdict(ratio_estimate(resamples, values, ones, transform=transform))

    def geometric_mean(logs: Floats) -> dict[str, Any] | None:
        return None if np.isnan(logs).all() else mean(logs, np.exp)

    return {
        "n": len(rows),
        "num_scored": int(scored.sum()),
        "num_groups": len(np.unique(groups[rows])),
        "num_response_tokens": int(np.nansum(tokens)),
        "perplexity": {
            "mean": mean(part["perplexity"]),
            "median": asdict(median_estimate(resamples, part["perplexity"])),
            "geometric_mean": mean(part["nll_mean"], np.exp),
            "token_weighted": asdict(
                ratio_estimate(resamples, part["nll_sum"], tokens, transform=np.exp)
            ),
        },
        "bits_per_byte": mean(part["bits_per_byte"]),
        # Ratio of sums, as arXiv 2601.14249 ranks data sets.
        "rank_surprisal_ratio": asdict(
            ratio_estimate(resamples, part["rank_mean"] * tokens, part["nll_sum"])
        ),
        "surprising_rate": asdict(
            ratio_estimate(resamples, part["surprising_rate"] * tokens, tokens)
        ),
        "tokens_per_response": mean(tokens),
        "ifd": geometric_mean(np.log(part["ifd"])),
        "in_context_perplexity": geometric_mean(part["in_context_nll_mean"]),
        "correct": _correctness(part, resamples, ones),
        "flags": dict(sorted(_count_flags(flags, rows).items())),
    }


def _correctness(
    part: Mapping[str, Floats], resamples: Resamples, ones: Floats
) -> dict[str, Any] | None:
    """Give the share of correct answers and the perplexity of either kind, where known."""
    correct = part["correct"]
    known = ~np.isnan(correct)
    if not known.any():
        return None
    right, wrong = (np.where(correct == side, part["nll_mean"], np.nan) for side in (1.0, 0.0))
    return {
        "n": int(known.sum()),
        "num_correct": int(np.nansum(correct)),
        "share": asdict(share_right(resamples, correct)),
        "perplexity_correct": asdict(ratio_estimate(resamples, right, ones, transform=np.exp)),
        "perplexity_wrong": asdict(ratio_estimate(resamples, wrong, ones, transform=np.exp)),
    }


def _count_flags(flags: list[Sequence[str] | None], rows: Ints) -> Counter[str]:
    if not flags:
        return Counter()
    return Counter(flag for row in rows.tolist() for flag in flags[row] or ())


def _compare(
    entries: Mapping[str, dict[str, Any]],
    nll_mean: Floats,
    groups: Ints,
    rows: Mapping[str, Ints],
    seed: int,
) -> dict[str, Any] | None:
    """Compare each source with the one of the lowest geometric mean perplexity, over shared groups.

    Returns:
        `reference` and `pairs`: source, num_groups, `difference` in nats a token (source minus
            reference, mean over
        groups of the difference of mean losses), verdict. None below two sources with scores.
    """
    geometric = {name: e["perplexity"]["geometric_mean"]["value"] for name, e in entries.items()}
    ranked = [name for name, value in geometric.items() if value is not None]
    if len(ranked) < 2:
        return None
    reference = min(ranked, key=lambda name: geometric[name])
    means = {name: group_means(groups[rows[name]], nll_mean[rows[name]]) for name in ranked}
    pairs = []
    for name in ranked:
        if name == reference:
            continue
        estimate, num_groups = paired_difference(
            means[name], means[reference], seed=source_seed(seed, name, reference)
        )
        verdict = _verdict(estimate, num_groups)
        pairs.append(
            {
                "source": name,
                "num_groups": num_groups,
                "difference": asdict(estimate),
                "verdict": verdict,
            }
        )
    return {"reference": reference, "pairs": pairs}


def _verdict(difference: Estimate, num_groups: int) -> str:
    if num_groups == 0:
        return "no shared questions"
    if difference.low is None or difference.high is None:
        return "too few questions"
    if difference.low > 0.0:
        return "less familiar"
    return "more familiar" if difference.high < 0.0 else "not distinguishable"
