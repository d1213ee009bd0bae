"""Cross-entropy of given tokens from hidden states, with its gradient: torch reference, CPU path.

Equations, for row r with logits z_j = h_r . w_j and target t:

    nll = log sum_j exp(z_j) - z_t        d nll / d h_r = sum_j softmax(z)_j w_j - w_t

Dimensions: R rows, D hidden size, V vocabulary. [R, V] never exists: one pass over tiles of 1024
tokens x 512 rows. The gradient is made in the same pass, its sum over tokens rescaled whenever a
tile raises the maximum (the online softmax of Milakov and Gimelshein 2018, arXiv 1805.02867), so
that nothing of the vocabulary's size is kept for, or computed again in, the backward pass. The head
is frozen: it has no gradient.
Dtypes: hidden and head in bf16, fp32 or fp64; logits, exponentials and gradient in fp32 with fp32
accumulation (fp64 for fp64 hidden states); sums of exponentials and nll in fp64.
Memory traffic: the head once (and once more in fp32), a logit tile (2 MB) four times in the cache,
the gradient once a tile. Work: 4 R D V with the gradient, 2 R D V without.

`linear_logprob` gives the same log-probs with rank, entropy and margin, for scoring.
"""

from __future__ import annotations

from typing import Final

import torch

ROW_TILE: Final = 512
VOCAB_TILE: Final = 1024


def linear_cross_entropy(
    hidden_RD: torch.Tensor,
    head_VD: torch.Tensor,
    targets_R: torch.Tensor,
    *,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the negative log-likelihood of one target a row.

    Args:
        hidden_RD: [R, D].
        head_VD: [V, D].
        targets_R: int64[R], ids below V.
        with_gradient: Whether to make the gradient too.

    Returns:
        float64[R], nats, the same bits with and without gradient; and d nll_r / d hidden_r as
        [R, D] in fp32 (fp64 for fp64), or None.
    """
    wide = torch.promote_types(hidden_RD.dtype, torch.float32)
    hidden_RD = hidden_RD.to(wide)
    gradient_RD = torch.zeros_like(hidden_RD) if with_gradient else None
    max_R = hidden_RD.new_full((hidden_RD.shape[0],), -torch.inf)
    sum_R = torch.zeros_like(max_R, dtype=torch.float64)
    target_R = torch.empty_like(max_R)
    for first in range(0, head_VD.shape[0], VOCAB_TILE):
        head = head_VD[first : first + VOCAB_TILE].to(wide)
        for start in range(0, hidden_RD.shape[0], ROW_TILE):
            rows = slice(start, start + ROW_TILE)
            z = hidden_RD[rows] @ head.t()
            _pick_targets(z, targets_R[rows] - first, out=target_R[rows])
            old_max = max_R[rows].clone()
            torch.maximum(old_max, z.amax(1), out=max_R[rows])
            z.sub_(max_R[rows, None]).exp_()
            shrunk = (old_max - max_R[rows]).exp_()
            sum_R[rows] = sum_R[rows] * shrunk + z.sum(1)
            if gradient_RD is not None:
                gradient_RD[rows] = (gradient_RD[rows] * shrunk[:, None]).addmm_(z, head)
    nll_R = sum_R.log() + (max_R.double() - target_R.double())
    if gradient_RD is not None:
        gradient_RD.div_(sum_R.to(wide)[:, None]).sub_(head_VD[targets_R])
    return nll_R, gradient_RD


def _pick_targets(z: torch.Tensor, column_R: torch.Tensor, *, out: torch.Tensor) -> None:
    """Copy the logit of each row whose target's column lies in this tile."""
    is_here = (column_R >= 0) & (column_R < z.shape[1])
    picked = z.gather(1, column_R.clamp(0, z.shape[1] - 1)[:, None])[:, 0]
    out.copy_(torch.where(is_here, picked, out))
