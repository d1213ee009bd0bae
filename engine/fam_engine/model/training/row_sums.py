"""The way back of rows that were taken: sums of their gradients, in an order laid down once a batch.

In: which rows were taken, on the host. Out: `RowSums` on the device; see `fam_engine.kernels.sum_rows`.

Letters: S rows that were taken, of T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fam_engine.data.packing import Int32
from fam_engine.model import ops


@dataclass(frozen=True)
class RowSums:
    """Which gradients are added to each row.

    Attributes:
        places_S: int32[S], of the rows that were taken, ordered by where they were taken from.
        starts_T: int32[T + 1], where in `places_S` those of a row begin.
    """

    places_S: torch.Tensor
    starts_T: torch.Tensor

    def write(self, x_S: torch.Tensor, *, out_T: torch.Tensor) -> None:
        """Write the sums of x [S, ...] to out [T, ...], 0 for rows that none were taken of."""
        # A view, where `flatten` might copy what is to be written.
        out_TW = out_T.view(out_T.shape[0], -1)
        ops.sum_rows(x_S.flatten(1), self.places_S, self.starts_T, out_TW=out_TW)


def order_of(taken: Int32, num_rows: int) -> list[Int32]:
    """Give `places_S` and `starts_T` of rows taken from `num_rows`."""
    places = np.argsort(taken, kind="stable").astype(np.int32)
    counts = np.bincount(taken, minlength=num_rows)
    return [places, np.concatenate(([0], counts.cumsum())).astype(np.int32)]
