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


def quantize(weight: torch.Tensor) -> NF4Weight:
    """Quantize a matrix as bitsandbytes does, on the device it is on.

    Args:
        weight: [N, K] in bf16, fp16 or fp32, finite. Quantized from its stored values, not from a rounding of them.

    Returns:
        The weight, on the same device.
    """
    packed, state = bitsandbytes_functional().quantize_4bit(
        weight, blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
    )
    return NF4Weight(
        packed=packed.view(-1),
        absmax=state.absmax.view(-1),
        absmax2=state.state2.absmax.view(-1),
        offset=state.offset.view(()),
        code2=state.state2.code,
        shape=(weight.shape[0], weight.shape[1]),
    )


def from_checkpoint(name: str, parts: dict[str, torch.Tensor], shape: tuple[int, int]) -> NF4Weight:
    """Take over a matrix that a checkpoint holds quantized by bitsandbytes.

    Args:
        name: The tensor's name, for messages.
        parts: The tensors by the ends of their names: "" the packed indices, and those of `PART_NAMES`.
        shape: (N, K) the model's config asks for.

    Raises:
        ModelRefusedError: Another format than 64-blocks of NF4 with double quantization, sizes that do not fit, or values
            that are not finite.
    """
    _check_state(name, parts["quant_state.bitsandbytes__nf4"], shape)
    num_values = shape[0] * shape[1]
    num_blocks = -(-num_values // BLOCK_SIZE)
    weight = NF4Weight(
        packed=_part(name, parts, "", torch.uint8, -(-num_values // 2)),
        absmax=_part(name, parts, "absmax", torch.uint8, num_blocks),
        absmax2=_part(
            name, parts, "nested_absmax", torch.float32, -(-num_blocks // NESTED_BLOCK_SIZE)
        ),
        offset=torch.tensor(_read_state(name, parts)["nested_offset"], dtype=torch.float32),
        code2=_part(name, parts, "nested_quant_map", torch.float32, 256),
        shape=shape,
    )
    code = bitsandbytes_functional().get_4bit_type("nf4", device="cpu")
    if not torch.equal(_part(name, parts, "quant_map", torch.float32, 16), code):
        _refuse(name, "has a `quant_map` that is not the NF4 table")
    return weight
