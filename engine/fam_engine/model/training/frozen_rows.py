"""A frozen matrix in the compute dtype, written into rows that may have room for more columns.

In: a matrix of any precision. Out: its values. Where an adapter's columns follow each row the result is
not contiguous, which the dequantizer wants: then pieces small enough for a cache are dequantized apart
and copied, instead of a second matrix of full size.

Letters: N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import gcd
from typing import Final

import torch

from fam_engine.model import ops
from fam_engine.model.nf4 import BLOCK_SIZE, NESTED_BLOCK_SIZE, NF4Weight
from fam_engine.model.weights import Linear

# Values dequantized apart at a time: 2 MB of fp32, the L2 cache of a server core.
_CHUNK_VALUES: Final = 2**19


def write_rows(linear: Linear, out: torch.Tensor) -> None:
    """Write W to `out` [N, K], whose rows may be longer than they are wide."""
    if isinstance(linear.weight, torch.Tensor):
        out.copy_(linear.weight)
        return
    heights = [part.shape[0] for part in linear.weight]
    for weight, rows in zip(linear.weight, out.split(heights), strict=True):
        if rows.is_contiguous():
            ops.dequantize(weight, dtype=out.dtype, out=rows)
            continue
        first = 0
        for piece in _pieces(weight):
            last = first + piece.shape[0]
            rows[first:last] = ops.dequantize(piece, dtype=out.dtype)
            first = last


def _pieces(weight: NF4Weight) -> Iterator[NF4Weight]:
    """Cut a matrix into pieces of rows small enough for a cache, where its blocks allow it."""
    num_rows, num_columns = weight.shape
    blocks, straddling = divmod(num_columns, BLOCK_SIZE)
    if straddling:
        yield weight
        return
    # A piece begins with a block whose scale is the first of its nested block.
    unit = NESTED_BLOCK_SIZE // gcd(blocks, NESTED_BLOCK_SIZE)
    step = max(1, _CHUNK_VALUES // (unit * num_columns)) * unit
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        values = slice(first * num_columns // 2, last * num_columns // 2)
        absmax = slice(first * blocks, last * blocks)
        nested = slice(
            absmax.start // NESTED_BLOCK_SIZE,
            -(-absmax.stop // NESTED_BLOCK_SIZE),
        )
        yield replace(
            weight,
            packed=weight.packed[values],
            absmax=weight.absmax[absmax],
            absmax2=weight.absmax2[nested],
            shape=(last - first, num_columns),
        )
