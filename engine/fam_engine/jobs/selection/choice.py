"""The choice itself: which of n scored records stay, and why the others go.

In: columns (the metric, question, source, length, correctness) and a `Plan`. Out: one reason a record, 0 meaning
chosen. No file and no text in here.

Records are put in an order and taken one after the other while the limits allow: by the metric where the lowest or
the highest are asked for, in a random order drawn from the seed where a band or a whole source is. Taking in order
makes one rule of what would else be several: at most one answer a question, at most so many of a source, at most so
many in all; and where a question's first answer is barred by its source's limit, its next one is taken, or another
question makes room for it (`limits`). So no selection within the limits is larger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from fam_engine.errors import UsageError
from fam_engine.jobs.selection.limits import Taking
from fam_engine.measure.familiarity import Direction, signed
from fam_engine.measure.statistics import Floats, Ints

Per = Literal["question", "source", "all"]
Codes = npt.NDArray[np.int8]

REASONS = (
    "selected",
    "metric_undefined",
    "incorrect",
    "correctness_unknown",
    "too_short",
    "too_long",
    "not_picked",
    "source_limit",
    "over_budget",
)
(
    SELECTED,
    METRIC_UNDEFINED,
    INCORRECT,
    CORRECTNESS_UNKNOWN,
    TOO_SHORT,
    TOO_LONG,
    NOT_PICKED,
    SOURCE_LIMIT,
    OVER_BUDGET,
) = range(len(REASONS))


@dataclass(frozen=True)
class Columns:
    """n scored records.

    Attributes:
        values: float64[n] to rank by; NaN where undefined.
        groups: int64[n], question of each, 0 to G - 1.
        sources: int64[n], source of each, a place in the list of their names.
        num_tokens: int64[n], of the response.
        correct: int64[n]: 1 right, 0 wrong, -1 unknown.
    """

    values: Floats
    groups: Ints
    sources: Ints
    num_tokens: Ints
    correct: Ints


@dataclass(frozen=True)
class Plan:
    """What to choose.

    Attributes:
        per: Among what one choice is made: the answers to a question, the sources, all records.
        pick: Whether the lowest or the highest come first.
        band: Quantiles (low, high) to keep instead of the first.
        correct_only: Leave out what is not known to be right.
        min_tokens: Shortest response, tokens.
        max_tokens: Longest response, tokens.
        quotas: Place of a source -> most records of it.
        max_share: Largest share of the selection a source may have.
        budget: Most records in all.
        seed: Of the random order.
    """

    per: Per
    pick: Direction
    band: tuple[float, float] | None = None
    correct_only: bool = False
    min_tokens: int | None = None
    max_tokens: int | None = None
    quotas: Mapping[int, int] = field(default_factory=dict)
    max_share: float | None = None
    budget: int | None = None
    seed: int = 0


def admit(columns: Columns, plan: Plan) -> Codes:
    """Apply the constraints on single records.

    Returns:
        int8[n], a place in `REASONS`: the first constraint a record fails, or `SELECTED`.
    """
    nothing = np.zeros(len(columns.values), np.bool_)
    tests = (
        (METRIC_UNDEFINED, np.isnan(columns.values)),
        (INCORRECT, columns.correct == 0 if plan.correct_only else nothing),
        (CORRECTNESS_UNKNOWN, columns.correct < 0 if plan.correct_only else nothing),
        (TOO_SHORT, nothing if plan.min_tokens is None else columns.num_tokens < plan.min_tokens),
        (TOO_LONG, nothing if plan.max_tokens is None else columns.num_tokens > plan.max_tokens),
    )
    reasons = np.zeros(len(columns.values), np.int8)
    for code, fails in reversed(tests):
        reasons[fails] = code
    return reasons


def choose(
    columns: Columns, plan: Plan, reasons: Codes, source_averages: Sequence[float | None]
) -> Codes:
    """Choose among the records that are admitted.

    Args:
        columns: The records.
        plan: What to choose.
        reasons: From `admit`.
        source_averages: Average of the metric over the admitted records of each source, None where
            it has none.

    Returns:
        int8[n], a place in `REASONS`.

    Raises:
        UsageError: No selection keeps every source at its share.
    """
    reasons = reasons.copy()
    admitted = np.flatnonzero(reasons == SELECTED)
    pool = admitted[_in_pool(columns, plan, admitted, source_averages)]
    reasons[admitted] = NOT_PICKED
    order = _ordered(columns, plan, pool)
    groups = columns.groups[order] if plan.per == "question" and plan.band is None else None
    reasons[order] = _take(columns.sources[order], groups, plan)
    return reasons


def _in_pool(
    columns: Columns, plan: Plan, admitted: Ints, source_averages: Sequence[float | None]
) -> npt.NDArray[np.bool_]:
    """Say which admitted records may be taken before any limit counts."""
    if plan.per == "source":
        keys = np.array([np.nan if v is None else v for v in source_averages], np.float64)
        chosen = _sources_picked(keys, plan)
        return np.isin(columns.sources[admitted], chosen)
    if plan.band is None:
        return np.ones(len(admitted), np.bool_)
    blocks = columns.groups if plan.per == "question" else np.zeros_like(columns.groups)
    quantiles = mid_quantiles(columns.values[admitted], blocks[admitted])
    return _within(quantiles, plan.band)


def _sources_picked(averages: Floats, plan: Plan) -> Ints:
    known = np.flatnonzero(~np.isnan(averages))
    if plan.band is not None:
        quantiles = mid_quantiles(averages[known], np.zeros(len(known), np.int64))
        return known[_within(quantiles, plan.band)]
    order = np.argsort(signed(averages[known], plan.pick), kind="stable")
    return known[order[:1]]


def mid_quantiles(values: Floats, blocks: Ints) -> Floats:
    """Give each value's place among those of its block: (rank + 1/2) / size, ties in input order.

    Args:
        values: float64[n], no NaN.
        blocks: int64[n], block of each value.

    Returns:
        float64[n], between 0 and 1.
    """
    order = np.lexsort((values, blocks))
    _, starts, sizes = np.unique(blocks[order], return_index=True, return_counts=True)
    ranks = np.arange(len(order)) - np.repeat(starts, sizes)
    quantiles = np.empty(len(order))
    quantiles[order] = (ranks + 0.5) / np.repeat(sizes, sizes)
    return quantiles


def _within(quantiles: Floats, band: tuple[float, float]) -> npt.NDArray[np.bool_]:
    # Neighbouring bands share no record and together hold all.
    inside: npt.NDArray[np.bool_] = (quantiles >= band[0]) & (quantiles < band[1])
    return inside


def _ordered(columns: Columns, plan: Plan, pool: Ints) -> Ints:
    """Give the pool in the order it is taken in."""
    if plan.band is not None or plan.per == "source":
        return pool[np.random.default_rng(plan.seed).permutation(len(pool))]
    return pool[np.argsort(signed(columns.values[pool], plan.pick), kind="stable")]


def _take(sources: Ints, groups: Ints | None, plan: Plan) -> Codes:
    """Take records in order while the limits allow: as many as they do.

    Args:
        sources: int64[k], in the order of taking.
        groups: int64[k] where a question may have one answer only.
        plan: Its quotas, share and budget count.
    """
    counts = np.bincount(sources, minlength=1).tolist()
    quotas = [min(count, plan.quotas.get(code, count)) for code, count in enumerate(counts)]
    questions = None if groups is None else np.unique(groups, return_inverse=True)[1]
    size = len(sources) if questions is None else int(questions.max(initial=-1)) + 1
    size = size if plan.budget is None else min(size, plan.budget)
    while size:
        room = _room(quotas, plan, size)
        taking = Taking(sources, questions, room, size)
        if plan.max_share is None or taking.count == size:
            return _reasons(sources, taking)
        size = _smaller(quotas, plan, room, taking)
    if not len(sources):
        return np.zeros(0, np.int8)
    raise _no_share(sum(count > 0 for count in counts), plan)


def _room(quotas: Sequence[int], plan: Plan, size: int) -> list[int]:
    """Give the most records of each source in a selection of a size."""
    if plan.max_share is None:
        return list(quotas)
    # A hair's breadth, since 0.2 * 5 may fall below 1.
    most = int(plan.max_share * size + 1e-9)
    return [min(quota, most) for quota in quotas]


def _smaller(quotas: Sequence[int], plan: Plan, room: Sequence[int], taking: Taking) -> int:
    """Give the largest size that may be had, where a selection stayed below one.

    The sources that got no room bound every smaller selection: it holds what they may have and, of all others, no
    more than this one does.
    """
    others = taking.count - sum(room[source] for source in taking.closed)
    closed = [quotas[source] for source in taking.closed]
    size = taking.count
    while (bound := others + sum(_room(closed, plan, size))) < size:
        size = bound
    return size


def _reasons(sources: Ints, taking: Taking) -> Codes:
    held, places = taking.held(), np.arange(len(sources))
    is_full = np.array(taking.room)[sources] == 0
    reasons = np.where(is_full, SOURCE_LIMIT, OVER_BUDGET)
    reasons[(held >= 0) & (held < places)] = NOT_PICKED
    reasons[held == places] = SELECTED
    return reasons.astype(np.int8)


def _no_share(num_sources: int, plan: Plan) -> UsageError:
    assert plan.max_share is not None
    is_too_low = plan.max_share * num_sources < 1 - 1e-9
    return UsageError(
        f"no selection keeps each of {num_sources} sources at or below {plan.max_share:.0%} of it",
        code="E_SOURCE_MIX",
        hint=f"raise --max-share, at least to 1 / {num_sources}"
        if is_too_low
        else "raise --max-share, or --quota and --budget where they are given",
    )
