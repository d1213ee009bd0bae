"""Rows in chunks whose wide copies stay in the cache: what the references for CPUs have in common.

In: a tensor of many rows. Out: slices of its rows. So nothing of a batch's size exists in fp32.
"""

from __future__ import annotations

from typing import Final

import torch

# 2^18 fp32 values are 1 MB, the L2 cache of a server core.
CHUNK_VALUES: Final = 2**18


def chunks(x: torch.Tensor) -> list[slice]:
    """Cut the first dimension into pieces of at most `CHUNK_VALUES` values, a row at least."""
    step = max(1, CHUNK_VALUES // max(1, x[:1].numel()))
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]
