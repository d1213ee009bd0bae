"""The metrics that answers can be selected by: which way each points, and how it is averaged over many answers.

In: the name of a metric and the columns of the scores table. Out: one number an answer to rank by,
and the numerators and denominators whose ratio is a set's average. Averages follow the metric's own
source: perplexities and IFD geometrically (one absurd answer then does not rule a whole set), the
rank-surprisal ratio as a ratio of sums, everything else as the mean an answer.

Which way is familiar is a convention of this table, not a law: Cherry data selection (arXiv
2308.12032), for one, takes the *highest* IFD below 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fam_engine.measure.statistics import Floats

Direction = Literal["lowest", "highest"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: Its column in the scores table.
        familiar: Which values are the familiar ones; what is picked unless asked otherwise.
        meaning: In a few words.
        log_of: Column that holds its logarithm; answers are ranked by that, since it never
            overflows.
        needs: Flag of `score` that computes it; empty: always there.
    """

    name: str
    familiar: Direction
    meaning: str
    log_of: str = ""
    needs: str = ""


METRICS = {
    metric.name: metric
    for metric in (
        Metric("perplexity", "lowest", "exp of the mean loss a token", log_of="nll_mean"),
        Metric("nll_mean", "lowest", "mean loss a token; minus the mean log-prob"),
        Metric("nll_sum", "lowest", "summed loss; minus the log-prob of the whole answer"),
        Metric("bits_per_byte", "lowest", "loss a byte; comparable between tokenizers"),
        Metric("rank_surprisal_ratio", "lowest", "summed ranks over summed loss"),
        Metric("rank_mean", "lowest", "mean rank of the answer's tokens"),
        Metric("surprising_rate", "lowest", "share of tokens with perplexity above 2.5"),
        Metric("entropy_mean", "lowest", "how unsure the model was"),
        Metric("eos_nll", "lowest", "loss of the end of the turn"),
        Metric("top1_rate", "highest", "share of tokens that are the model's first choice"),
        Metric("margin_mean", "highest", "log-prob of the token minus that of the best other"),
        Metric("ifd", "lowest", "perplexity with the prompt over without", needs="--ifd"),
        Metric("ifd_loss_ratio", "lowest", "loss with the prompt over without", needs="--ifd"),
        Metric(
            "in_context_perplexity",
            "lowest",
            "perplexity after worked examples",
            log_of="in_context_nll_mean",
            needs="--in-context K",
        ),
        Metric(
            "in_context_nll_mean", "lowest", "loss after worked examples", needs="--in-context K"
        ),
    )
}


@dataclass(frozen=True)
class Averaged:
    """What a set's average is made from: transform(sum of numerators / sum of denominators).

    Attributes:
        numerators: float64[n], NaN where undefined.
        denominators: float64[n].
        transform: Monotone and rising.
        kind: In words: `mean`, `geometric mean`, `ratio of sums`.
        unit: Of the ratio before `transform`, in words.
    """

    numerators: Floats
    denominators: Floats
    transform: Callable[[Floats], Floats]
    kind: str
    unit: str


def columns_of(metric: Metric) -> list[str]:
    """Name the columns that ranking and averaging by a metric read."""
    extra = ["rank_mean", "num_response_tokens", "nll_sum"]
    columns = [metric.name, metric.log_of] if metric.log_of else [metric.name]
    return columns + (extra if metric.name == "rank_surprisal_ratio" else [])


def ranking_values(metric: Metric, columns: Mapping[str, Floats]) -> Floats:
    """Give float64[n] to rank answers by, in the metric's own order; NaN where undefined."""
    return columns[metric.log_of or metric.name]


def signed(values: Floats, pick: Direction) -> Floats:
    """Turn values so that the lowest is the one to pick."""
    return values if pick == "lowest" else -values


def averaged(metric: Metric, columns: Mapping[str, Floats]) -> Averaged:
    """Say how a set's average is made.

    Args:
        metric: Which one.
        columns: float64[n] each; those `columns_of` names.
    """
    ones = np.ones(len(columns[metric.name]))
    if metric.name == "rank_surprisal_ratio":
        # Over the records of a set, as arXiv 2601.14249 ranks teachers.
        ranks = columns["rank_mean"] * columns["num_response_tokens"]
        return Averaged(ranks, columns["nll_sum"], _same, "ratio of sums", "ranks a nat")
    if metric.log_of:
        return Averaged(columns[metric.log_of], ones, np.exp, "geometric mean", "nats a token")
    if metric.name == "ifd":
        return Averaged(np.log(columns["ifd"]), ones, np.exp, "geometric mean", "log of the ratio")
    return Averaged(columns[metric.name], ones, _same, "mean", "the metric's own")


def _same(values: Floats) -> Floats:
    return values
