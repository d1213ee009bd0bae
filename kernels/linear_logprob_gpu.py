"""Log-prob, rank, entropy and margin of given tokens from hidden states, on a GPU: which of two implementations.

The equations are those of `linear_logprob`, which is the reference. `linear_logprob_triton` keeps no logits, but its
products are only as fast as Triton makes them; `linear_logprob_tiles_triton` has cuBLAS multiply and pays 8 bytes of
traffic a logit, which is less of the whole the larger D is (2D operations a logit). So a table says from which D on the
latter is taken, by compute capability. V does not matter: both cost the same times V. On the same GPUs the former loads
through descriptors (TMA), whose rows are multiples of 16 bytes; for another D the latter is taken, which has no such
limit.

The choice depends on the model and the GPU alone, so that a record's bits do not depend on the batch it is in.
"""

from __future__ import annotations

from types import ModuleType
from typing import Final

import torch

from fam_engine.kernels import linear_logprob_tiles_triton, linear_logprob_triton
from fam_engine.kernels.launching import capability_of
from fam_engine.kernels.linear_logprob import LinearLogprobs

_NEVER: Final = 1 << 30
# Measured on 9.0 at D = 4096: 69 % of the rate of large products, 67 % without cuBLAS. The rest is expected: cuBLAS is
# ahead of Triton on 9.0 and 10.0 only.
_TILES_FROM_WIDTH: Final = {
    80: _NEVER,
    86: _NEVER,
    89: _NEVER,
    90: 2048,
    100: 2048,
    120: _NEVER,
}
# Of a row that TMA loads: 16 bytes, and 2 bytes a value at least.
_TMA_VALUES: Final = 8


def choose(capability: int, width: int) -> ModuleType:
    """Give the module whose `linear_logprob` is taken for a hidden size D."""
    first_width = _TILES_FROM_WIDTH[capability]
    has_tma = first_width < _NEVER
    takes_tiles = width >= first_width or (has_tma and width % _TMA_VALUES != 0)
    return linear_logprob_tiles_triton if takes_tiles else linear_logprob_triton


def linear_logprob(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> LinearLogprobs:
    """Compute the facts of one target a row.

    Args:
        hidden_RD: [R, D] in bf16, fp16 or fp32, contiguous. A row's bits are independent of the others.
        head_VD: [V, D] of the same dtype, contiguous.
        targets_R: int64[R], ids below V; another one is a device-side assertion, as in torch.

    Returns:
        The facts, on the same device.
    """
    chosen = choose(capability_of(hidden_RD.device), hidden_RD.shape[1])
    facts: LinearLogprobs = chosen.linear_logprob(hidden_RD, head_VD, targets_R)
    return facts
