from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from fam_engine.kernels import linear_cross_entropy_triton as kernel
from fam_engine.kernels.linear_cross_entropy_triton import linear_cross_entropy
from tests.kernels.on import DEVICE, DTYPES, rounding

Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_BLOCK", 256)


def make(num_rows: int, vocab_size: int, dtype: torch.dtype, spread: float = 1.0) -> Given:
    torch.manual_seed(0)
    hidden_RD = (torch.randn(num_rows, 16) * spread).to(DEVICE, dtype)
    head_VD = torch.randn(vocab_size, 16).to(DEVICE, dtype)
    return hidden_RD, head_VD, torch.randint(0, vocab_size, (num_rows,)).to(DEVICE)


def truth(given: Given) -> tuple[torch.Tensor, torch.Tensor]:
    hidden_RD, head_VD, targets_R = given
    hidden = hidden_RD.double().requires_grad_()
    nll_R = cross_entropy(hidden @ head_VD.double().T, targets_R, reduction="none")
    (gradient_RD,) = torch.autograd.grad(nll_R.sum(), hidden)
    return nll_R.detach(), gradient_RD


# 1: nothing but the target; 256: one block; 257: a block of one token; 600: neither block nor row aligned.
@pytest.mark.parametrize("vocab_size", [1, 63, 256, 257, 600])
@pytest.mark.parametrize("num_rows", [1, 13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_dense_loss(num_rows: int, vocab_size: int, dtype: torch.dtype) -> None:
    given = make(num_rows, vocab_size, dtype)
    nll_R, gradient_RD = linear_cross_entropy(*given, with_gradient=True)
    expected_nll, expected_gradient = truth(given)
    assert gradient_RD is not None
    assert nll_R.dtype == torch.float64
    assert gradient_RD.dtype == torch.float32
    assert (nll_R - expected_nll).abs().max() <= 1e-5
    # |G| sums to 2 at most, each of it rounded once; the head's values are below 4.5.
    bound = 2 * 4.5 * rounding(dtype) + 1e-5
    assert (gradient_RD - expected_gradient).abs().max() <= bound


@pytest.mark.parametrize("spread", [0.0, 60.0, 2000.0])
def test_flat_and_extreme_logits(spread: float) -> None:
    given = make(13, 600, torch.float32, spread)
    nll_R, gradient_RD = linear_cross_entropy(*given, with_gradient=True)
    expected_nll, expected_gradient = truth(given)
    assert gradient_RD is not None
    size = max(1.0, spread)
    assert (nll_R - expected_nll).abs().max() <= 1e-5 * size
    assert (gradient_RD - expected_gradient).abs().max() <= 1e-5 * size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [4.0, 18.0, 40.0])
def test_a_sure_model_has_a_loss_and_a_gradient(dtype: torch.dtype, lead: float) -> None:
    # The target is ahead of 599 others by `lead`: their sum vanishes beside 1 in fp32, nll does not.
    head_VD = torch.zeros(600, 8, device=DEVICE, dtype=dtype)
    head_VD[417, 0] = 1
    hidden_RD = torch.full((1, 8), lead, device=DEVICE, dtype=dtype)
    given = (hidden_RD, head_VD, torch.tensor([417], device=DEVICE))
    nll_R, gradient_RD = linear_cross_entropy(*given, with_gradient=True)
    assert gradient_RD is not None
    rest = 599 * torch.tensor(-lead, dtype=torch.float64).exp()
    assert abs(nll_R[0] / torch.log1p(rest) - 1) < 1e-5
    if dtype != torch.float16 or lead < 10:  # fp16 has no 1e-9
        assert abs(gradient_RD[0, 0].double() / (-rest / (1 + rest)) - 1) <= rounding(dtype) + 1e-5
    assert (gradient_RD[0, 1:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_changes_no_bit_of_the_loss(dtype: torch.dtype) -> None:
    given = make(13, 600, dtype)
    nll_R, gradient_RD = linear_cross_entropy(*given, with_gradient=False)
    assert gradient_RD is None
    assert torch.equal(nll_R, linear_cross_entropy(*given, with_gradient=True)[0])


def test_rows_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    given = make(70, 100, torch.float16)
    whole = linear_cross_entropy(*given, with_gradient=True)
    monkeypatch.setattr(kernel, "_MIN_ROWS", 64)
    monkeypatch.setattr(kernel, "_TILE_BYTES", 0)
    assert kernel._tile(70, 100, DEVICE).shape == (64, 128)
    tiled = linear_cross_entropy(*given, with_gradient=True)
    for found, expected in zip(tiled, whole, strict=True):
        assert found is not None
        assert expected is not None
        assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("vocab_size", [32_000, 128_256, 151_936, 163_840])
def test_a_tile_keeps_its_bound_and_a_thousand_rows(vocab_size: int) -> None:
    shape = kernel._tile(10**6, vocab_size, torch.device("meta")).shape
    assert shape[0] >= 1024
    assert shape[0] * shape[1] * 4 <= 640 * 2**20


def test_no_rows() -> None:
    given = make(0, 100, torch.float32)
    nll_R, gradient_RD = linear_cross_entropy(*given, with_gradient=True)
    assert gradient_RD is not None
    assert nll_R.shape == (0,)
    assert gradient_RD.shape == (0, 16)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
def test_what_is_not_finite_is_seen() -> None:
    given = make(13, 600, torch.float32)
    given[0][5] = torch.nan
    nll_R, gradient_RD = linear_cross_entropy(*given, with_gradient=True)
    assert gradient_RD is not None
    assert nll_R.isnan().nonzero().tolist() == [[5]]
    assert gradient_RD.isnan().any(1).nonzero().tolist() == [[5]]


def test_what_lies_beyond_the_vocabulary_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = make(13, 600, torch.float16)
    expected = linear_cross_entropy(*given, with_gradient=True)
    make_tile = kernel._tile
    monkeypatch.setattr(kernel, "_tile", lambda *shape: make_tile(*shape).fill_(torch.nan))
    for found, clean in zip(
        linear_cross_entropy(*given, with_gradient=True), expected, strict=True
    ):
        assert found is not None
        assert clean is not None
        assert torch.equal(found, clean)
