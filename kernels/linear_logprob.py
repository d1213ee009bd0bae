"""Log-prob, rank, entropy and margin of given tokens from hidden states: torch reference.

Equations, for row r with logits z_j = h_r . w_j and target t:

    lse = log sum_j exp(z_j)            logprob = z_t - lse
    entropy = lse - sum_j p_j z_j       margin = z_t - max_{j != t} z_j
    rank = min(100, 1 + #{j != t : z_j > z_t})

Dimensions: R rows, D hidden size, V vocabulary. [R, V] never exists: one pass over tiles of 1024
tokens x 512 rows, whose partial results (4 values a row and tile) are merged in fp64 in a fixed
order. (An idea of Wijmans et al. 2024, "Cut your losses", arXiv 2411.09009.)
Dtypes: hidden and head in bf16, fp32 or fp64; logits in fp32 with fp32 accumulation (fp64 for fp64
hidden states); results fp64. No bf16 logits: they are off by up to 2^-9 of their size.
Memory traffic: the head once (and once more in fp32), a logit tile (2 MB) six times in the cache.

Measured on a core with AVX512-BF16, D = 896, ms for a 512 x 1024 tile: fp32 product 9.9, bf16
product 4.7, this function as a whole 11.5. Hence `linear_logprob_avx512` for bf16 there.
Rejected: two bf16 products, the second one giving the rounding error of the first (addmm with
beta = -1): 9.4 to 10.3 ms, error 5e-5 instead of 2e-6 for logits of size 7. oneDNN's bf16 math mode
for fp32 tensors: 8.9 ms, no real gain for a global switch. mm(out_dtype=float32) is CUDA only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

ROW_TILE: Final = 512
VOCAB_TILE: Final = 1024
MAX_RANK: Final = 100


@dataclass(frozen=True)
class LinearLogprobs:
    """Results, one value a row.

    Attributes:
        logprob_R: float64[R], nats.
        rank_R: int32[R], from 1 to 100.
        entropy_R: float64[R], nats.
        margin_R: float64[R], nats.
    """

    logprob_R: torch.Tensor
    rank_R: torch.Tensor
    entropy_R: torch.Tensor
    margin_R: torch.Tensor


def linear_logprob(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> LinearLogprobs:
    """Compute the facts of one target a row.

    Args:
        hidden_RD: [R, D]; R a multiple of 64 makes each row's bits independent of the others.
        head_VD: [V, D].
        targets_R: int64[R], ids below V.

    Returns:
        The facts, on the same device.
    """
    wide = torch.promote_types(hidden_RD.dtype, torch.float32)
    hidden_RD = hidden_RD.to(wide)
    target_logit_R = _target_logits(hidden_RD, head_VD, targets_R)
    stats = _Partials(hidden_RD.shape[0], head_VD.shape[0], like=hidden_RD)
    places = _places_of_targets(targets_R, head_VD.shape[0])
    logits = hidden_RD.new_empty(ROW_TILE * VOCAB_TILE)
    probs = torch.empty_like(logits)
    for tile, head in enumerate(head_VD.split(VOCAB_TILE)):
        head_D_tile = head.to(wide).t()
        for chunk, hidden in enumerate(hidden_RD.split(ROW_TILE)):
            shape = (hidden.shape[0], head.shape[0])
            z = logits[: shape[0] * shape[1]].view(shape)
            p = probs[: shape[0] * shape[1]].view(shape)
            torch.mm(hidden, head_D_tile, out=z)
            z[places[tile][chunk]] = _left_out(wide)
            first = chunk * ROW_TILE
            rows = slice(first, first + shape[0])
            stats.add(tile, rows, z, p, target_logit_R[rows, None])
    return stats.merge(target_logit_R.double())


def _left_out(dtype: torch.dtype) -> float:
    """Give a logit without weight. Finite, so that probability 0 times it is 0 and not NaN."""
    return torch.finfo(dtype).min / 2


def _target_logits(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> torch.Tensor:
    """Give [R] logits of the targets, with the bits the same product gives them in a tile.

    They are needed before their tile comes, to count larger logits. A dot product would round
    differently and rank tokens with equal weights (unused ones often have them) above the target.
    So it is a matrix product too, of 64 rows at a time, of which the diagonal is kept. In fp32 a
    value's bits do not depend on its column or on the number of columns (MKL, AVX-512; 14 widths D
    from 40 to 4096, 1 to 3 threads); in fp64 they do.
    """
    chunks = [
        torch.mm(hidden, head_VD[targets].to(hidden.dtype).t()).diagonal()
        for hidden, targets in zip(hidden_RD.split(64), targets_R.split(64), strict=True)
    ]
    return torch.cat(chunks)


def _places_of_targets(
    targets_R: torch.Tensor, vocab_size: int
) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Give, for each vocabulary tile and row tile, the (row, column) places of targets in it."""
    num_tiles = -(-vocab_size // VOCAB_TILE)
    num_chunks = -(-targets_R.shape[0] // ROW_TILE)
    row_R = torch.arange(targets_R.shape[0], device=targets_R.device)
    cell_R = targets_R // VOCAB_TILE * num_chunks + row_R // ROW_TILE
    order = cell_R.argsort(stable=True)
    counts = torch.bincount(cell_R, minlength=num_tiles * num_chunks).tolist()
    rows = (row_R % ROW_TILE)[order].split(counts)
    columns = (targets_R % VOCAB_TILE)[order].split(counts)
    cells = list(zip(rows, columns, strict=True))
    return [cells[tile * num_chunks : (tile + 1) * num_chunks] for tile in range(num_tiles)]


class _Partials:
    """What each tile says about each row, targets left out.

    Args:
        num_rows: R.
        vocab_size: V.
        like: A tensor of the logits' dtype and device.
    """

    def __init__(self, num_rows: int, vocab_size: int, *, like: torch.Tensor) -> None:
        shape = (-(-vocab_size // VOCAB_TILE), num_rows)
        self.max = like.new_empty(shape)
        self.inverse_sum = like.new_empty(shape)  # 1 / sum of exp(z - max)
        self.mean = like.new_empty(shape)  # of z, weighted with the tile's own softmax
        self.num_larger = like.new_empty(shape)

    def add(
        self, tile: int, rows: slice, z: torch.Tensor, p: torch.Tensor, target_logit: torch.Tensor
    ) -> None:
        """Take up one tile of logits. p is memory of the same shape."""
        torch.amax(z, 1, out=self.max[tile, rows])
        # The one fused exp of torch: 0.33 ms a tile, 0.50 as subtraction and exp. Its largest value
        # is exp(0) / sum, so the sum need not be computed again.
        torch.softmax(z, 1, out=p)
        torch.amax(p, 1, out=self.inverse_sum[tile, rows])
        torch.sum(p.mul_(z), 1, out=self.mean[tile, rows])
        # Comparing into floats and adding those is 4 times faster than summing bools.
        torch.sum(torch.gt(z, target_logit, out=p), 1, out=self.num_larger[tile, rows])

    def merge(self, target_logit_R: torch.Tensor) -> LinearLogprobs:
        """Put the tiles and the target together, in fp64."""
        lse_tiles = self.max.double() - self.inverse_sum.double().log()
        lse_R = torch.logaddexp(torch.logsumexp(lse_tiles, 0), target_logit_R)
        logprob_R = target_logit_R - lse_R
        mean_R = ((lse_tiles - lse_R).exp_() * self.mean.double()).sum(0)
        rank_R = self.num_larger.double().sum(0).add_(1).clamp_(max=MAX_RANK)
        return LinearLogprobs(
            logprob_R=logprob_R,
            rank_R=rank_R.int(),
            entropy_R=lse_R - mean_R - logprob_R.exp() * target_logit_R,
            margin_R=target_logit_R - self.max.double().amax(0),
        )
