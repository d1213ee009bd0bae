"""LoRA factors beside a matrix, so that one product computes matrix and adapter.

Equation, for a matrix W [N, K] and adapters of ranks whose sum is at most r:

    augmented [N + r, K + r] = [ W   scaling * B ]
                               [ A   0           ]

    S = x @ A^T                      [M, r], from augmented[N:, :K]
    y = [x, S] @ augmented[:N]^T  =  x @ W^T + scaling * S @ B^T
    dS = dy @ (scaling * B)          [M, r], from augmented[:N, K:]
    dx = [dy, dS] @ augmented[:, :K]  =  dy @ W + dS @ A

The adapter is added within the accumulator of the one product, so it is rounded once with the rest,
and the matrix is not rounded again. Merged sources (q, k, v; gate, up) have a place among the r
columns each, in the order given: B is block-diagonal. Rows of a source without an adapter, and
columns beyond the ranks, are zero.

In: the factors, in any floating dtype. Out: the margins, rounded once; the matrix is written by
whoever has it (`nf4_dequantize(..., out=augmented[:N, :K])`).

Memory traffic: r (N + K) values in, r (N + K + r) out: of a matrix of 4096 x 4096, 3 % for r = 64.
So these are torch's copies: two for the zeros and three an adapter. A kernel of ours could save
launches only (one a source, for tensors of different places and ranks); not yet measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch

from fam_engine.kernels.nf4_dequantize import LoraFactors

# Rows of the augmented matrix stay multiples of 16 values, 32 bytes, for matrix products.
_RANK_MULTIPLE: Final = 16


def augmented_rank(ranks: Iterable[int]) -> int:
    """Give how many rows and columns adapters of these ranks add: their sum, to the next 16."""
    return -(-sum(ranks) // _RANK_MULTIPLE) * _RANK_MULTIPLE


def write_margins(
    parts: Sequence[tuple[int, LoraFactors]], *, shape: tuple[int, int], out: torch.Tensor
) -> None:
    """Write all of an augmented matrix but the matrix.

    Args:
        parts: The first row of each source that has an adapter, and its factors: A is [R, K], B
            has the rows of the source.
        shape: (N, K) of the matrix.
        out: [N + r, K + r] in the dtype of products, r at least the sum of ranks. out[:N, :K] is
            not touched.
    """
    num_rows, num_columns = shape
    assert out.shape[0] - num_rows == out.shape[1] - num_columns
    wide = torch.promote_types(out.dtype, torch.float32)
    out[:num_rows, num_columns:].zero_()
    out[num_rows:].zero_()
    first = 0
    for first_row, lora in parts:
        last = first + lora.lora_A.shape[0]
        assert lora.lora_A.shape[1] == num_columns
        assert first_row + lora.lora_B.shape[0] <= num_rows
        assert num_columns + last <= out.shape[1]
        out[num_rows + first : num_rows + last, :num_columns] = lora.lora_A
        rows = slice(first_row, first_row + lora.lora_B.shape[0])
        out[rows, num_columns + first : num_columns + last] = lora.lora_B.to(wide) * lora.scaling
        first = last
