from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import grad_norm as reference
from fam_engine.kernels.grad_norm_triton import _BLOCK, _STEPS, grad_norm
from tests.kernels.on import DEVICE

PROGRAM = _BLOCK * _STEPS


# 1; one program and a value more; three programs, the last of them short.
@pytest.mark.parametrize("size", [1, PROGRAM + 1, 2 * PROGRAM + 777])
@pytest.mark.parametrize("max_norm", [1e-3, 1e9])
def test_equals_float64(size: int, max_norm: float) -> None:
    torch.manual_seed(0)
    grads = torch.randn(size) * 0.01
    truth = reference.grad_norm(grads.double(), max_norm=max_norm)
    found = grad_norm(grads.to(DEVICE), max_norm=max_norm).cpu()
    assert found.dtype == torch.float32
    assert ((found.double() - truth).abs() <= 4e-7 * truth).all()
    assert (found[1] == 1) == (max_norm > 1)


def test_more_sums_than_the_second_stage_adds_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    grads = torch.randn(5 * PROGRAM + 1)
    expected = grad_norm(grads.to(DEVICE), max_norm=1.0)
    monkeypatch.setattr("fam_engine.kernels.grad_norm_triton._SUMS", 4)
    # Sums of six numbers in fp64 differ by nothing that fp32 shows.
    assert torch.equal(grad_norm(grads.to(DEVICE), max_norm=1.0), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_seen(bad: float) -> None:
    grads = torch.ones(PROGRAM + 3, device=DEVICE)
    grads[PROGRAM] = bad
    norm, factor = grad_norm(grads, max_norm=1.0)
    assert not norm.isfinite()
    assert (grads * factor).isnan().any()


def test_nothing_beyond_the_end_is_read() -> None:
    room = torch.full((100,), torch.nan, device=DEVICE)
    room[:16] = 3.0
    assert grad_norm(room[:16], max_norm=1.0)[0] == 12
