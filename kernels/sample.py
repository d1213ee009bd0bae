"""The choice of a token a row from its logits and one random number, counted by a seed and a position: torch reference.

Equations, for logits z and temperature t, in float64:

    t = 0    the token with the largest logit
    t > 0    p = softmax(z / t); with top-k of the k largest logits only; with top-p of the largest
             that come before the probability top-p is reached, the one that reaches it included;
             then the first token at which the sum of what is left exceeds u times all that is left
    logprob  z_token - log sum_j exp(z_j): of the model's own distribution, without temperature
    u        of seed s and position i, with 64-bit integers that wrap and >> that fills with zeros:
             x = s + (i + 1) * 0x9E3779B97F4A7C15
             x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9
             x = (x ^ x >> 27) * 0x94D049BB133111EB
             u = ((x ^ x >> 31) >> 11) * 2^-53

Sums go from the largest logit to the smallest; without top-k and top-p in the vocabulary's order.
Equal logits come in the vocabulary's order, in every case. Top-p: Holtzman et al. 2020, arXiv
1904.09751. The number: SplitMix64, whose stream can be entered anywhere (Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators"). One number a token suffices (the inverse of the
cumulative distribution); Gumbel noise would need one a token of the vocabulary.

Dimensions: R rows, V vocabulary.
Dtypes: logits fp32 (or fp64), seed and position int64, u fp64; token ids int64, logprobs fp64.
Memory traffic: logits in fp64, sorted whole, several times: to compare with.
"""

from __future__ import annotations

from typing import Final

import torch

# As int64.
_STEP: Final = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTORS: Final = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def sample(
    logits_RV: torch.Tensor,
    seed_R: torch.Tensor,
    position_R: torch.Tensor,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token a row.

    Args:
        logits_RV: [R, V]; what is not finite is never chosen.
        seed_R: int64[R], any; seeds of different texts should be no near numbers but hashes.
        position_R: int64[R], which number of a seed's.
        temperature: Divides the logits; 0: the largest is chosen.
        top_p: Only the most probable tokens that together have this probability; 1: all.
        top_k: Only so many of the largest, before `top_p`; 0: all.

    Returns:
        int64[R] tokens, float64[R] logprobs in nats.
    """
    uniform_R = uniform(seed_R, position_R)
    z_RV = logits_RV.double().masked_fill(~logits_RV.isfinite(), -torch.inf)
    if temperature == 0:
        tokens_R = z_RV.argmax(-1)
    elif top_k == 0 and top_p == 1:
        tokens_R = _invert((z_RV / temperature).softmax(-1), uniform_R)
    else:
        largest_RV, ids_RV = z_RV.sort(dim=-1, descending=True, stable=True)
        if top_k:
            largest_RV[:, top_k:] = -torch.inf
        probs_RV = (largest_RV / temperature).softmax(-1)
        is_kept_RV = probs_RV.cumsum(-1) - probs_RV < top_p
        is_kept_RV[:, 0] = True
        places_R = _invert(probs_RV * is_kept_RV, uniform_R)
        tokens_R = ids_RV.gather(1, places_R[:, None])[:, 0]
    return tokens_R, z_RV.log_softmax(-1).gather(1, tokens_R[:, None])[:, 0]


def uniform(seed_R: torch.Tensor, position_R: torch.Tensor) -> torch.Tensor:
    """Give the random numbers of seeds at positions.

    Args:
        seed_R: int64[R].
        position_R: int64[R].

    Returns:
        float64[R], in [0, 1), multiples of 2^-53.
    """
    x_R = seed_R + (position_R + 1) * _STEP
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        x_R = (x_R ^ _shifted(x_R, shift)) * factor
    return _shifted(x_R ^ _shifted(x_R, 31), 11).double() * 2.0**-53


def _shifted(x_R: torch.Tensor, shift: int) -> torch.Tensor:
    """Shift to the right, and fill with zeros: torch's own fills with the sign."""
    return (x_R >> shift) & ((1 << 64 - shift) - 1)


def _invert(weights_RV: torch.Tensor, uniform_R: torch.Tensor) -> torch.Tensor:
    """Give the first column whose cumulative weight exceeds the row's share of the total."""
    cumulative_RV = weights_RV.cumsum(-1)
    wanted_R1 = uniform_R[:, None] * cumulative_RV[:, -1:]
    # Rounding can put the share at the total itself, which no column exceeds: then the last column
    # that adds to it.
    is_before_RV = (cumulative_RV <= wanted_R1) & (cumulative_RV < cumulative_RV[:, -1:])
    return is_before_RV.sum(-1)
