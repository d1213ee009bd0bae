from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.swiglu_triton import swiglu
from tests.kernels.on import DEVICE, DTYPES, rounding


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 172), (2, 2049)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64_rounded_once(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(shape[0], 2 * shape[1]) * 4).to(DEVICE, dtype)
    out = torch.empty(shape, dtype=dtype, device=DEVICE)
    swiglu(gate_up, out=out)
    gate, up = gate_up.double().chunk(2, dim=1)
    truth = gate * torch.sigmoid(gate) * up
    assert ((out.double() - truth).abs() <= rounding(dtype) * truth.abs() + 1e-7).all()


def test_rows_may_be_far_apart() -> None:
    torch.manual_seed(0)
    room = torch.randn(4, 40, device=DEVICE)
    wide = torch.full((4, 16), 7.0, device=DEVICE)
    swiglu(room[:, :20], out=wide[:, :10])
    close = torch.empty(4, 10, device=DEVICE)
    swiglu(room[:, :20].contiguous(), out=close)
    assert torch.equal(wide[:, :10], close)
    assert (wide[:, 10:] == 7).all()
