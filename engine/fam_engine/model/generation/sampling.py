"""The choice of a token: from logits and one random number a row.

In: logits [R, V], a text's seed and the token's position a row. Out: token ids [R], and their log-probs
[R]. A row's token depends on these of its own alone: the random number is counted from seed and position
(see `fam_engine.kernels.sample`), not drawn from a stream, and so the same whatever else is being
generated.

Letters: R rows, V vocabulary, K candidates.
"""

from __future__ import annotations

import hashlib
from typing import Final

import torch

from fam_engine.model import ops
from fam_engine.model.generation.requests import Sampling

# Candidates looked at for top-p; rows whose mass lies wider are sorted whole (10 times as slow for a
# vocabulary of 150,000).
_CANDIDATES: Final = 1024
# Values whose exponentials are summed at a time: they stay in the cache.
_CACHED: Final = 1 << 16


def text_seed(seed: int, sample: int) -> int:
    """Give the seed of a text, 64 bits with a sign: a hash, as numbers are counted from it."""
    digest = hashlib.blake2b(f"{seed} {sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def choose(
    logits_RV: torch.Tensor, seed_R: torch.Tensor, position_R: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token a row, and give its log-prob as `chosen_logprobs` does.

    Args:
        logits_RV: fp32 or wider.
        seed_R: int64[R], a `text_seed` each.
        position_R: int64[R], of the token in its text, the prompt counted.
        sampling: How.

    Returns:
        int64[R] tokens, float64[R] logprobs.
    """
    if ops.takes_triton(logits_RV):
        return ops.sample(
            logits_RV,
            seed_R,
            position_R,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
    tokens_R = choose_tokens(logits_RV, ops.uniform(seed_R, position_R), sampling)
    return tokens_R, chosen_logprobs(logits_RV, tokens_R)


def choose_tokens(
    logits_RV: torch.Tensor, uniform_R: torch.Tensor, sampling: Sampling
) -> torch.Tensor:
    """Choose a token a row.

    Args:
        logits_RV: fp32 or wider.
        uniform_R: float64, in [0, 1).
        sampling: How.

    Returns:
        int64[R].
    """
    if sampling.temperature == 0:
        return logits_RV.max(-1).indices  # the first of the largest, in half the time of argmax
    if sampling.top_k:
        count = min(sampling.top_k, logits_RV.shape[1])
        return _from_top(logits_RV, uniform_R, sampling, count)[0]
    if sampling.top_p == 1:
        probs_RV = (logits_RV.double() / sampling.temperature).softmax(-1)
        return _invert(probs_RV, uniform_R)
    count = min(_CANDIDATES, logits_RV.shape[1])
    chosen_R, is_enough_R = _from_top(logits_RV, uniform_R, sampling, count)
    wide = (~is_enough_R).nonzero()[:, 0]
    if len(wide):
        whole = _from_top(logits_RV[wide], uniform_R[wide], sampling, logits_RV.shape[1])
        chosen_R[wide] = whole[0]
    return chosen_R


def chosen_logprobs(logits_RV: torch.Tensor, tokens_R: torch.Tensor) -> torch.Tensor:
    """Give the log-prob of a token a row, of the model's own distribution: no temperature.

    Args:
        logits_RV: fp32 or wider.
        tokens_R: int64[R].

    Returns:
        float64[R], nats; the sums of exponentials are fp32, made pairwise (2e-7 off at most,
        measured with 150,000 values). Summing in fp64 takes twice as long, a sixth of a step's head
        product.
    """
    largest_R1 = logits_RV.amax(-1, keepdim=True)
    chosen_R1 = logits_RV.gather(1, tokens_R[:, None])
    few = max(1, _CACHED // logits_RV.shape[1])
    sums = [
        (logits - largest).exp_().sum(-1)
        for logits, largest in zip(logits_RV.split(few), largest_R1.split(few), strict=True)
    ]
    return (chosen_R1.double() - largest_R1.double())[:, 0] - torch.cat(sums).double().log()


def _from_top(
    logits_RV: torch.Tensor, uniform_R: torch.Tensor, sampling: Sampling, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose among the `count` most probable tokens; also say where they hold the mass of top-p."""
    top_RK, ids_RK = logits_RV.topk(count)
    scaled_RK = top_RK.double() / sampling.temperature
    if sampling.top_k:  # top-p after top-k is of what is left, else of the whole distribution
        probs_RK = scaled_RK.softmax(-1)
    else:
        total_R1 = (logits_RV / sampling.temperature).logsumexp(-1, keepdim=True)
        probs_RK = (scaled_RK - total_R1).exp()
    before_RK = probs_RK.cumsum(-1) - probs_RK
    is_kept_RK = before_RK < sampling.top_p
    is_kept_RK[:, 0] = True
    chosen_R = _invert(probs_RK * is_kept_RK, uniform_R)
    is_enough_R = probs_RK.sum(-1) >= sampling.top_p
    if count == logits_RV.shape[1]:
        is_enough_R = torch.ones_like(is_enough_R)
    return ids_RK.gather(1, chosen_R[:, None])[:, 0], is_enough_R


def _invert(weights_RK: torch.Tensor, uniform_R: torch.Tensor) -> torch.Tensor:
    """Give the first column whose cumulative weight exceeds the row's share of the total."""
    cumulative_RK = weights_RK.cumsum(-1)
    wanted_R1 = uniform_R[:, None] * cumulative_RK[:, -1:]
    column_R = torch.searchsorted(cumulative_RK, wanted_R1, right=True)[:, 0]
    # Rounding can put the share at the total itself, which no column exceeds: then the last column
    # that adds to it.
    last_R = (cumulative_RK < cumulative_RK[:, -1:]).sum(-1)
    return torch.minimum(column_R, last_R)
