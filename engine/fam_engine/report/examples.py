"""The answers shown token by token: which ones, and what a report needs to know of each.

In: the columns of the scores table. Out: row numbers of the most and least familiar answers, for
which the caller then reads the texts, so that a report over a million records touches six of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Below this an average is a matter of one or two tokens, and the extremes would all be one-word
# answers.
MIN_TOKENS = 8


@dataclass(frozen=True)
class Example:
    """One answer with what the model made of each token.

    Attributes:
        id: Of the record.
        source: Of the record.
        prompt: What the answer answers.
        tokens: Text of each response token, n of them.
        logprobs: n log-probs, nats.
        ranks: n ranks, 1 is the model's first choice.
        perplexity: Of the whole response; None if too large.
        correct: Whether the answer is right, where known.
    """

    id: str
    source: str
    prompt: str
    tokens: Sequence[str]
    logprobs: Sequence[float]
    ranks: Sequence[int]
    perplexity: float | None
    correct: bool | None = None


def pick_examples(
    nll_mean: npt.NDArray[np.float64], num_response_tokens: npt.NDArray[np.int64], *, count: int = 3
) -> tuple[list[int], list[int]]:
    """Pick the rows with the lowest and the highest mean loss.

    Args:
        nll_mean: float64[n], NaN where undefined.
        num_response_tokens: int[n]. Answers of fewer than 8 tokens are left out if enough are
            longer.
        count: How many of each kind.

    Returns:
        Rows of the most familiar answers, most familiar first, and of the least familiar, least
        familiar first. No row is in both.
    """
    known = ~np.isnan(nll_mean)
    long_enough = known & (num_response_tokens >= MIN_TOKENS)
    rows = np.flatnonzero(long_enough if long_enough.sum() >= 2 * count else known)
    ranked = rows[np.argsort(nll_mean[rows], kind="stable")].tolist()
    most = ranked[: min(count, (len(ranked) + 1) // 2)]
    return most, ranked[len(most) :][::-1][:count]
