"""From hidden states to what the model says about each token.

In: hidden_RD, the head, the tokens to predict. Out: `TokenFacts`. The logits never exist as a
whole, see `fam_engine.kernels.linear_logprob`. Who wants the most probable tokens as well gets them
from a second product with the head, 64 rows of logits at a time.
"""

from __future__ import annotations

import torch

from fam_engine.data.packing import ROW_GRID, Int32
from fam_engine.measure.results import TokenFacts, TopTokens
from fam_engine.model import ops, products
from fam_engine.model.ops import LinearLogprobs
from fam_engine.model.varlen_plan import send


class PendingFacts:
    """Facts that a GPU may still be computing.

    Args:
        result: Of all rows, on the device.
        num_rows: How many of the rows are real.
    """

    def __init__(self, result: LinearLogprobs, *, num_rows: int) -> None:
        columns = (result.logprob_R, result.rank_R, result.entropy_R, result.margin_R)
        # To page-locked memory: the host goes on, and reads once the event has come.
        self._columns = [x[:num_rows].to("cpu", non_blocking=True) for x in columns]
        self._is_there = torch.cuda.Event() if result.logprob_R.is_cuda else None
        if self._is_there is not None:
            self._is_there.record()

    def read(self) -> TokenFacts:
        """Wait for them and give them."""
        if self._is_there is not None:
            self._is_there.synchronize()
        return TokenFacts(*(column.numpy() for column in self._columns))


def token_facts(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: Int32, *, num_rows: int
) -> TokenFacts:
    """Compute the facts of a batch's targets; see `launch_token_facts`."""
    return launch_token_facts(hidden_RD, head_VD, targets_R, num_rows=num_rows).read()


@torch.inference_mode()
def launch_token_facts(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: Int32, *, num_rows: int
) -> PendingFacts:
    """Let the device compute the facts of a batch's targets.

    Args:
        hidden_RD: [R, D] from `Decoder.hidden_rows`; R a multiple of 64.
        head_VD: [V, D].
        targets_R: int32[R], a token id a row.
        num_rows: How many of the rows are real.

    Returns:
        The facts of the real rows, in order.
    """
    (targets,) = send([targets_R], hidden_RD.device)
    result = ops.linear_logprob(hidden_RD, head_VD, targets.long())
    return PendingFacts(result, num_rows=num_rows)


@torch.inference_mode()
def top_tokens(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, *, num_rows: int, count: int
) -> TopTokens:
    """Give the most probable tokens of a batch's rows.

    Args:
        hidden_RD: [R, D] from `Decoder.hidden_rows`; R a multiple of 64.
        head_VD: [V, D].
        num_rows: How many of the rows are real.
        count: k, at most V.

    Returns:
        [num_rows, k].
    """
    tops = []
    for hidden in hidden_RD.split(ROW_GRID):
        logits_RV = products.head_logits(hidden, head_VD)
        values_RK, ids_RK = logits_RV.topk(count)
        # Summed in fp64, or tokens that are near each other would change places with those whose
        # log-probs `token_facts` computes.
        shares_RV = logits_RV.sub_(values_RK[:, :1]).exp_()
        lse_R1 = values_RK[:, :1].double() + shares_RV.sum(-1, True, dtype=torch.float64).log()
        tops.append((ids_RK.int().cpu(), (values_RK.double() - lse_R1).cpu()))
    ids, logprobs = (torch.cat(columns)[:num_rows].numpy() for columns in zip(*tops, strict=True))
    return TopTokens(ids, logprobs)
