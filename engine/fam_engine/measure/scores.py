"""The metric columns of one scored record.

In: nothing. Out: `Score`, whose field names are the column names of the scores table, in its order.
Every metric is a float or None where it is undefined; NaN and infinity never occur, since neither
JSON nor a sort knows what to do with them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """How familiar one response is to the model.

    Attributes:
        num_prompt_tokens: Context tokens the response was conditioned on.
        num_response_tokens: Response tokens scored, the end of turn apart.
        num_bytes: UTF-8 bytes of the response.
        nll_sum: Negative log-likelihood of the response, nats.
        nll_mean: The same per response token, nats.
        perplexity: exp(nll_mean); None with an `nll_mean` means that it is beyond float64.
        bits_per_byte: nll_sum / (ln 2 * num_bytes); comparable between tokenizers.
        eos_nll: Negative log-likelihood of the end-of-turn tokens, nats.
        rank_mean: Mean rank of the response's tokens, 1 is the model's first choice, clipped at
            100.
        rank_surprisal_ratio: Sum of ranks over `nll_sum`.
        entropy_mean: Mean entropy of the model's predictions, nats.
        margin_mean: Mean log-prob of the token minus that of the best other token, nats.
        top1_rate: Share of tokens that are the model's first choice.
        surprising_rate: Share of tokens with exp(nll) > 2.5.
    """

    num_prompt_tokens: int
    num_response_tokens: int
    num_bytes: int
    nll_sum: float | None = None
    nll_mean: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    eos_nll: float | None = None
    rank_mean: float | None = None
    rank_surprisal_ratio: float | None = None
    entropy_mean: float | None = None
    margin_mean: float | None = None
    top1_rate: float | None = None
    surprising_rate: float | None = None
