"""NF4 weights that several tests make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fam_engine.kernels.nf4_dequantize import NF4Weight

if TYPE_CHECKING:
    import torch
    from bitsandbytes.functional import QuantState


def from_state(packed: torch.Tensor, state: QuantState, shape: tuple[int, int]) -> NF4Weight:
    """Give what bitsandbytes quantized."""
    return NF4Weight(
        packed=packed,
        absmax=state.absmax,
        absmax2=state.state2.absmax,
        offset=state.offset,
        code2=state.state2.code,
        shape=shape,
    )
