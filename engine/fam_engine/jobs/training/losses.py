"""Which tokens a training step listens to, and how much: one weight a token.

In: negative log-likelihoods of the tokens under the model in training and under its base (the
adapter disabled). Out: weights w, constants to the gradient. The loss of a step is

    sum of w * nll over all its tokens / number of its supervised tokens,

so a weight follows from its own token alone: then any split of a step into micro-batches gives the
same loss and gradients. The divisor counts tokens of weight 0 too: leaving tokens out makes steps
smaller, it does not make the others louder. With p and p_base the probabilities of the token:

plain    w = 1.
stm      w = 1 where 1 / p_base <= `max_token_perplexity`, else 0. Selective token masking, Wu et al.
         2025, arXiv 2501.14315, at 2.5.
soft     w = min(1, `max_token_perplexity` * p_base). Ours: stm without its step. Tokens it keeps
         have weight 1; beyond, the weight falls with the base's probability instead of to 0.
dft      w = p. Dynamic fine-tuning, Wu et al. 2025, arXiv 2508.05629: nll * exp(-nll), the factor
         not differentiated.
excess   w = 1 where nll - nll_base >= `min_excess`, else 0. The excess loss of Rho-1, Lin et al.
         2024, arXiv 2404.07965, whose reference is a model trained on better data. Ours is the base
         itself, at first equal to the model: with a negative `min_excess` a token trains until it
         has become that many nats likelier than it was, which bounds how far surprising tokens pull
         the model. Rho-1 keeps a share of a batch's tokens, ours a threshold, because a share would
         depend on how the step is split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch

LossName = Literal["plain", "stm", "soft", "dft", "excess"]
# The losses that ask what the base says of each token.
NEEDS_BASE: Final[tuple[LossName, ...]] = ("stm", "soft", "excess")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Which loss, and its thresholds.

    Attributes:
        loss: Its name, see the module's text.
        max_token_perplexity: For stm and soft: exp(nll) of a token under the base, at least 1.
        min_excess: For excess: nats, negative.
    """

    loss: LossName = "plain"
    max_token_perplexity: float = 2.5
    min_excess: float = -1.0


def token_weights(
    nll_R: torch.Tensor, base_nll_R: torch.Tensor | None, settings: LossSettings
) -> torch.Tensor:
    """Give the weight of each token.

    Args:
        nll_R: [R] negative log-likelihoods under the model in training, nats.
        base_nll_R: [R] under its base; needed by the losses in `NEEDS_BASE`.
        settings: Which loss.

    Returns:
        [R] of nll_R's dtype, from 0 to 1, without gradient.
    """
    nll_R = nll_R.detach()
    if settings.loss == "plain":
        return torch.ones_like(nll_R)
    if settings.loss == "dft":
        return torch.exp(-nll_R)
    assert base_nll_R is not None, f"loss {settings.loss} needs the base's nll"
    base_nll_R = base_nll_R.detach().to(nll_R.dtype)
    most = math.log(settings.max_token_perplexity)
    match settings.loss:
        case "stm":
            return (base_nll_R <= most).to(nll_R.dtype)
        case "soft":
            return torch.exp((most - base_nll_R).clamp(max=0))
        case "excess":
            return (nll_R - base_nll_R >= settings.min_excess).to(nll_R.dtype)
