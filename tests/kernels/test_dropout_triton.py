from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import dropout as reference
from fam_engine.kernels.dropout_triton import dropout
from tests.kernels.on import DEVICE, DTYPES


# 1: one word; 17: a block of 16 and one more; 2049: a second program; 2048: whole programs.
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 2049), (3, 2048)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.7])
def test_equals_the_reference_bit_by_bit(
    shape: tuple[int, int], dtype: torch.dtype, rate: float
) -> None:
    torch.manual_seed(0)
    x_TK = torch.randn(shape).to(dtype)
    x_TK[0, 0] = torch.inf
    given = {"rate": rate, "stream": (2**31 - 1, 3, 4096)}
    seed = torch.tensor([2**63 - 25])
    expected, out = torch.empty_like(x_TK), torch.empty_like(x_TK, device=DEVICE)
    reference.dropout(x_TK, seed=seed, out=expected, **given)
    dropout(x_TK.to(DEVICE), seed=seed.to(DEVICE), out=out, **given)
    assert torch.equal(out.cpu().nan_to_num(5), expected.nan_to_num(5))


def test_in_place_and_rows_far_apart() -> None:
    room = torch.full((6, 40), 7.0, device=DEVICE)
    given = {"rate": 0.25, "seed": torch.tensor([7], device=DEVICE), "stream": (0, 0, 0)}
    close = torch.empty(6, 21, device=DEVICE)
    dropout(room[:, 3:24].contiguous(), out=close, **given)
    dropout(room[:, 3:24], out=room[:, 3:24], **given)
    assert torch.equal(room[:, 3:24], close)
    assert (room[:, :3] == 7).all()
    assert (room[:, 24:] == 7).all()
    assert (close == 0).any()
