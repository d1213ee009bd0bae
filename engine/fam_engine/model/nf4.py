"""NF4 weights: bitsandbytes' own format, held as plain tensors.

In: a weight matrix (quantized by bitsandbytes, so the bits are its bits), or the tensors of a pre-quantized checkpoint.
Out: `NF4Weight`, which `ops` dequantizes into scratch memory.

The format: the row-major flattened matrix is cut into blocks of 64 values (a block may straddle rows), each value is a
4-bit index into the NF4 table times its block's absmax. The absmaxes are quantized again ("double quantization"): minus
their mean (`offset`), in blocks of 256, to 8-bit indices into `code2` times `absmax2`. Merging q, k, v (or gate, up) would
give one mean where a checkpoint has three, so a merged matrix is a tuple of weights, each dequantized into its own rows.
Weights without double quantization are refused: one format means one dequantizer to keep exact on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class NF4Weight:
    """A matrix of shape (N, K) in NF4 with double quantization.

    Attributes:
        packed: uint8[ceil(N * K / 2)], two indices a byte, the first in the high half.
        absmax: uint8[ceil(N * K / 64)], indices into `code2`, one a block.
        absmax2: float32[ceil(num_blocks / 256)], scales of `absmax`.
        offset: float32[] (no dimension), the mean taken off the absmaxes.
        code2: float32[256], the table behind `absmax`.
        shape: (N, K) = (out_features, in_features).
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    absmax2: torch.Tensor
    offset: torch.Tensor
    code2: torch.Tensor
    shape: tuple[int, int]
