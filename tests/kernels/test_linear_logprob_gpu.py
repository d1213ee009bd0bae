from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import linear_logprob_gpu as kernel
from fam_engine.kernels import linear_logprob_tiles_triton as tiles
from fam_engine.kernels import linear_logprob_triton as fused
from fam_engine.kernels.launching import CAPABILITIES
from fam_engine.kernels.linear_logprob import linear_logprob
from tests.kernels.on import DEVICE, DTYPES


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_gpu_has_a_choice(capability: int) -> None:
    assert kernel.choose(capability, 16) is fused
    assert kernel.choose(capability, 4096) is (tiles if capability in (90, 100) else fused)
    # A row of 16-bit values that is no multiple of 16 bytes cannot be loaded through a descriptor.
    has_tma = fused._blocks(capability, torch.bfloat16).has_tma
    assert {kernel.choose(capability, width) for width in (1, 20, 36, 44, 100)} == {
        tiles if has_tma else fused
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [20, 100])
def test_rows_that_no_descriptor_takes_are_computed(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (kernel, fused):
        monkeypatch.setattr(module, "capability_of", lambda _: 90)
    torch.manual_seed(0)
    hidden_RD, head_VD = (torch.randn(n, width).to(DEVICE, dtype) for n in (3, 40))
    operands = hidden_RD, head_VD, torch.tensor([0, 39, 7], device=DEVICE)
    ours, expected = kernel.linear_logprob(*operands), linear_logprob(*operands)
    assert torch.equal(ours.rank_R, expected.rank_R)
    torch.testing.assert_close(ours.logprob_R, expected.logprob_R, rtol=1e-5, atol=1e-5)


def test_the_chosen_one_is_taken() -> None:
    torch.manual_seed(0)
    operands = (torch.randn(3, 16), torch.randn(40, 16), torch.tensor([0, 39, 7]))
    operands = tuple(operand.to(DEVICE) for operand in operands)
    ours, chosen = kernel.linear_logprob(*operands), fused.linear_logprob(*operands)
    for name in ("logprob_R", "rank_R", "entropy_R", "margin_R"):
        assert torch.equal(getattr(ours, name), getattr(chosen, name)), name
