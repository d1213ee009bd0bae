"""From hidden states to what the model says about each token.

In: hidden_RD, the head, the tokens to predict. Out: `TokenFacts`. The logits never exist as a
whole, see `fam_engine.kernels.linear_logprob`.
"""

from __future__ import annotations

import torch

from fam_engine.data.packing import Int32
from fam_engine.measure.results import TokenFacts
from fam_engine.model import ops


@torch.inference_mode()
def token_facts(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: Int32, *, num_rows: int
) -> TokenFacts:
    """Compute the facts of a batch's targets.

    Args:
        hidden_RD: [R, D] from `Decoder.hidden_rows`; R a multiple of 64.
        head_VD: [V, D].
        targets_R: int32[R], a token id a row.
        num_rows: How many of the rows are real.

    Returns:
        The facts of the real rows, in order.
    """
    targets = torch.from_numpy(targets_R).to(hidden_RD.device, torch.int64)
    result = ops.linear_logprob(hidden_RD, head_VD, targets)
    return TokenFacts(
        logprobs=result.logprob_R[:num_rows].cpu().numpy(),
        ranks=result.rank_R[:num_rows].cpu().numpy(),
        entropies=result.entropy_R[:num_rows].cpu().numpy(),
        margins=result.margin_R[:num_rows].cpu().numpy(),
    )
