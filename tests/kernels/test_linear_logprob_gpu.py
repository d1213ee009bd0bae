from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import linear_logprob_gpu as kernel
from fam_engine.kernels import linear_logprob_tiles_triton as tiles
from fam_engine.kernels import linear_logprob_triton as fused
from fam_engine.kernels.launching import CAPABILITIES
from tests.kernels.on import DEVICE


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_gpu_has_a_choice(capability: int) -> None:
    assert kernel.choose(capability, 16) is fused
    assert kernel.choose(capability, 4096) is (tiles if capability in (90, 100) else fused)


def test_the_chosen_one_is_taken() -> None:
    torch.manual_seed(0)
    operands = (torch.randn(3, 16), torch.randn(40, 16), torch.tensor([0, 39, 7]))
    operands = tuple(operand.to(DEVICE) for operand in operands)
    ours, chosen = kernel.linear_logprob(*operands), fused.linear_logprob(*operands)
    for name in ("logprob_R", "rank_R", "entropy_R", "margin_R"):
        assert torch.equal(getattr(ours, name), getattr(chosen, name)), name
