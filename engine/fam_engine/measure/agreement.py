"""How far two ways of computing the same answers agree: token by token, answer by answer, and in their order.

In: the log-probs of the same tokens, computed twice. Out: plain figures in nats: how much more surprising (less, where
negative) the tokens are the other way than in the reference. The order has figures of its own, since a difference that
all answers share moves none of them, and the order is what a selection by familiarity goes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fam_engine.measure.replay import spearman
from fam_engine.measure.statistics import Floats, Ints, factorize

_NUM_SHOWN = 5


@dataclass(frozen=True, eq=False)
class TokenLogprobs:
    """What one way of computing says about T tokens of n answers.

    Attributes:
        logprobs: float64[T], nats.
        is_first: bool[T], whether the token is the model's first choice.
        offsets: int64[n + 1], where each answer begins.
    """

    logprobs: Floats
    is_first: npt.NDArray[np.bool_]
    offsets: Ints

    def nll_means(self) -> Floats:
        """Give the mean negative log-likelihood of each answer's tokens, float64[n]."""
        return -np.add.reduceat(self.logprobs, self.offsets[:-1]) / np.diff(self.offsets)


def agreement(reference: TokenLogprobs, other: TokenLogprobs) -> dict[str, Any]:
    """Compare two ways.

    Returns:
        `mean` (with its sign), `mean_abs`, `p95_abs`, `max_abs` of the tokens' differences;
        `answer_max_abs`, the largest of the answers' means; `top1_agreement`, the share of tokens
        that both or neither put first; `rank_correlation` of the answers (Spearman; None where one
        way has no order); `pairs` of answers, and how many of them are `reordered`.
    """
    differences = reference.logprobs - other.logprobs
    sizes = np.abs(differences)
    first, second = reference.nll_means(), other.nll_means()
    num_reordered = int(_reordered(first, second).sum())
    return {
        "mean": float(differences.mean()),
        "mean_abs": float(sizes.mean()),
        "p95_abs": float(np.quantile(sizes, 0.95)),
        "max_abs": float(sizes.max()),
        "answer_max_abs": float(np.abs(second - first).max()),
        "top1_agreement": float((reference.is_first == other.is_first).mean()),
        "rank_correlation": spearman(first, second),
        "pairs": len(first) * (len(first) - 1) // 2,
        "reordered": num_reordered,
    }


def _reordered(first: Floats, second: Floats) -> npt.NDArray[np.bool_]:
    """Say of each pair, row before column, whether the two ways put it in opposite orders."""
    signs = (np.sign(values[:, None] - values[None, :]) for values in (first, second))
    opposite: npt.NDArray[np.bool_] = np.triu(np.multiply(*signs) < 0)
    return opposite


def most_changed(ids: Sequence[str], first: Floats, second: Floats) -> list[dict[str, Any]]:
    """List the answers that moved most, `id` and both means, and their places by familiarity."""
    order = np.argsort(-np.abs(second - first), kind="stable")[:_NUM_SHOWN]
    places = [np.argsort(np.argsort(values, kind="stable")) + 1 for values in (first, second)]
    return [
        {
            "id": ids[row],
            "nll_mean": [float(first[row]), float(second[row])],
            "place": [int(places[0][row]), int(places[1][row])],
        }
        for row in order.tolist()
    ]


def changed_picks(
    ids: Sequence[str], groups: Sequence[str], first: Floats, second: Floats
) -> dict[str, Any]:
    """Compare the most familiar answer to each question that has several.

    Returns:
        `questions`, `changed`, and `shown`: a few of those that changed, with both picks' ids.
    """
    codes, _ = factorize(list(groups))
    order = np.argsort(codes, kind="stable")
    bounds = [0, *(np.flatnonzero(np.diff(codes[order])) + 1).tolist(), len(order)]
    questions = [order[a:b] for a, b in pairwise(bounds) if b - a > 1]
    picks = [(rows[first[rows].argmin()], rows[second[rows].argmin()]) for rows in questions]
    changed = [{"from": ids[a], "to": ids[b]} for a, b in picks if a != b]
    return {"questions": len(questions), "changed": len(changed), "shown": changed[:_NUM_SHOWN]}
