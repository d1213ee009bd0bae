"""The formulas: from facts about each token to the metrics of a record.

In: `TokenFacts` of one record (response tokens first, then end-of-turn tokens). Out: a `Score`, and
the two IFD ratios. Sums use `math.fsum`, which rounds once: the result is the same on every
machine, whatever its vector width, and costs about 10 us for a response of 124 tokens.

Sources: perplexity as familiarity, arXiv 2402.11192; in-context perplexity, arXiv 2502.11779;
rank-surprisal ratio, arXiv 2601.14249; surprising tokens (threshold 2.5), arXiv 2501.14315;
instruction-following difficulty, arXiv 2308.12032.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fam_engine.measure.scores import Score

if TYPE_CHECKING:
    from fam_engine.measure.results import TokenFacts

# A token is surprising where exp(nll) is above this: the threshold that arXiv 2501.14315 masks at.
SURPRISING_PERPLEXITY = 2.5


def score_record(
    facts: TokenFacts, *, num_prompt_tokens: int, num_response_tokens: int, num_bytes: int
) -> Score:
    """Reduce the facts of a record's tokens to its metrics.

    Args:
        facts: Rows of the response tokens, then of the end-of-turn tokens; log-probs finite.
        num_prompt_tokens: Context tokens.
        num_response_tokens: Rows that belong to the response; the rest are the end of turn.
        num_bytes: UTF-8 bytes of the response.

    Returns:
        The metrics; all of them None for a response without tokens, but for `eos_nll`.
    """
    num_rows = len(facts.logprobs)
    assert 0 <= num_response_tokens <= num_rows, (num_response_tokens, num_rows)
    response = facts.slice(0, num_response_tokens)
    nll_sum = _total_nll(response.logprobs)
    nll_mean = None if nll_sum is None else nll_sum / num_response_tokens
    return Score(
        num_prompt_tokens=num_prompt_tokens,
        num_response_tokens=num_response_tokens,
        num_bytes=num_bytes,
        nll_sum=nll_sum,
        nll_mean=nll_mean,
        perplexity=perplexity(nll_mean),
        bits_per_byte=_ratio(nll_sum, math.log(2) * num_bytes),
        eos_nll=_total_nll(facts.slice(num_response_tokens, num_rows).logprobs),
        rank_mean=_mean(response.ranks),
        rank_surprisal_ratio=_rank_surprisal_ratio(response.ranks, nll_sum),
        entropy_mean=_mean(response.entropies),
        margin_mean=_mean(response.margins),
        top1_rate=_mean(response.ranks == 1),
        surprising_rate=_mean(response.logprobs < -math.log(SURPRISING_PERPLEXITY)),
    )


def perplexity(nll_mean: float | None) -> float | None:
    """Give exp(nll_mean), or None where it is undefined or beyond float64 (nll_mean > 709.78)."""
    try:
        return None if nll_mean is None else math.exp(nll_mean)
    except OverflowError:
        return None


def ifd_scores(
    nll_mean: float | None, nll_mean_alone: float | None
) -> tuple[float | None, float | None]:
    """Compare a response given its prompt with the same response alone.

    Two measures go by the name of IFD. `ifd` is the ratio of perplexities, which Cherry_LLM's code and
    Superfiltering (arXiv 2402.00530) compute; `ifd_loss_ratio` is the ratio of mean losses, which the
    paper of Cherry_LLM defines (arXiv 2308.12032). Both are below 1 exactly where the prompt helps,
    but they do not rank answers alike.

    Args:
        nll_mean: Mean negative log-likelihood given the prompt, nats a token.
        nll_mean_alone: The same without the prompt, over the same tokens.

    Returns:
        (ifd, ifd_loss_ratio), None where undefined or beyond float64.
    """
    if nll_mean is None or nll_mean_alone is None:
        return None, None
    return perplexity(nll_mean - nll_mean_alone), _ratio(nll_mean, nll_mean_alone)


def _total_nll(logprobs: npt.NDArray[np.float64]) -> float | None:
    if len(logprobs) == 0:
        return None
    # Adding zero turns the -0.0 of tokens that are certain into 0.0.
    total = 0.0 - math.fsum(logprobs.tolist())
    assert math.isfinite(total), "log-probs of a record that is scored are finite"
    return total


def _mean(values: npt.NDArray[np.generic]) -> float | None:
    return _ratio(math.fsum(values.tolist()), len(values))


def _rank_surprisal_ratio(ranks: npt.NDArray[np.int32], nll_sum: float | None) -> float | None:
    # Rounding can leave a certain response with a sum a hair below zero, where the ratio has no
    # meaning.
    if nll_sum is None or nll_sum <= 0.0:
        return None
    return _ratio(float(ranks.sum()), nll_sum)


def _ratio(numerator: float | None, denominator: float) -> float | None:
    if numerator is None or denominator == 0.0:
        return None
    value = numerator / denominator
    return value if math.isfinite(value) else None
