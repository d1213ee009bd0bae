"""Sums of rows that were taken from the same place, in a fixed order: torch reference and CPU path.

Equation: out[t] = sum over i from starts[t] to starts[t + 1] of x[places[i]], 0 where there is none.

It is the gradient of taking rows: of a prompt's keys that each sibling reads a copy of, of a row that several answers
are predicted from. Which are added, and in which order, is laid down once a batch (compressed sparse rows), so that
no bit depends on which comes first; torch's `index_add_` and its gradient of an index are atomic additions on a GPU.

Dimensions: S rows that were taken, T places they were taken from, W values a row.
Dtypes: any floating dtype in and out; sums in fp32 (fp64 for fp64), rounded once.
Memory traffic: (S + T) W values.
"""

from __future__ import annotations

import torch


def sum_rows(
    x_SW: torch.Tensor, places_S: torch.Tensor, starts_T: torch.Tensor, *, out_TW: torch.Tensor
) -> None:
    """Write the sums.

    Args:
        x_SW: [S, W], rows contiguous, any row stride.
        places_S: int32[S], rows of x ordered by the place they were taken from.
        starts_T: int32[T + 1]: `places_S[starts_T[t] : starts_T[t + 1]]` were taken from place t.
        out_TW: [T, W], rows contiguous, any row stride.
    """
    numbers = torch.arange(len(places_S), dtype=starts_T.dtype, device=x_SW.device)
    taken_from = torch.searchsorted(starts_T, numbers, right=True) - 1
    wide = torch.promote_types(x_SW.dtype, torch.float32)
    total = torch.zeros(out_TW.shape, dtype=wide, device=x_SW.device)
    # In order, on a CPU.
    total.index_add_(0, taken_from, x_SW[places_S].to(wide))
    out_TW.copy_(total)
