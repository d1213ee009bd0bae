"""The kernel's own edges; that its facts are right is tested where they are used, `token_facts`."""

from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import linear_logprob as kernel


@pytest.mark.parametrize(("row_tile", "vocab_tile"), [(64, 7), (128, 64), (512, 1024)])
def test_tiles_do_not_change_results(
    monkeypatch: pytest.MonkeyPatch, row_tile: int, vocab_tile: int
) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(320, 16).double(), torch.randn(1000, 16).double()
    targets = torch.randint(0, 1000, (320,))
    expected = kernel.linear_logprob(hidden, head, targets)
    monkeypatch.setattr(kernel, "ROW_TILE", row_tile)
    monkeypatch.setattr(kernel, "VOCAB_TILE", vocab_tile)
    result = kernel.linear_logprob(hidden, head, targets)
    assert torch.equal(result.rank_R, expected.rank_R)
    for name in ("logprob_R", "entropy_R", "margin_R"):
        difference = getattr(result, name) - getattr(expected, name)
        assert difference.abs().max() <= 1e-12


@pytest.mark.parametrize("vocab_size", [5, 1500])
def test_a_certain_target_has_no_entropy(vocab_size: int) -> None:
    head = torch.zeros(vocab_size, 1)
    head[3] = 1.0
    result = kernel.linear_logprob(torch.full((64, 1), 200.0), head, torch.full((64,), 3))
    assert (result.rank_R == 1).all()
    assert result.logprob_R.abs().max() == 0
    assert result.entropy_R.abs().max() < 1e-6
    assert (result.margin_R == 200.0).all()


def test_what_is_not_finite_is_seen() -> None:
    hidden = torch.ones(64, 2)
    hidden[5] = torch.nan
    result = kernel.linear_logprob(hidden, torch.randn(50, 2), torch.zeros(64, dtype=torch.int64))
    assert result.logprob_R[5].isnan()
    assert result.logprob_R.isnan().sum() == 1


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("width", [48, 172, 896])
def test_a_target_s_logit_has_the_bits_of_its_tile(width: int, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    try:
        torch.manual_seed(0)
        hidden, head = torch.randn(192, width), torch.randn(1409, width)  # a tile, and one of 385
        targets = torch.randint(0, 1409, (192,))
        logits = torch.cat(
            [torch.mm(hidden, tile.t()) for tile in head.split(kernel.VOCAB_TILE)], 1
        )
        own = logits[torch.arange(192), targets]
        assert torch.equal(kernel._target_logits(hidden, head, targets), own)
        order = torch.randperm(192)
        assert torch.equal(kernel._target_logits(hidden[order], head, targets[order]), own[order])
    finally:
        torch.set_num_threads(1)
