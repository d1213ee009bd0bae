"""Dropout's reference: what it leaves out, how often, and that nothing else moves its mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fam_engine.kernels.dropout import dropout, num_dropped, scale

STREAM = (3, 1, 0)


def masked(
    x_TK: torch.Tensor, rate: float = 0.25, seed: int = 7, stream: tuple[int, int, int] = STREAM
) -> torch.Tensor:
    out = torch.empty_like(x_TK)
    dropout(x_TK, rate=rate, seed=torch.tensor([seed]), stream=stream, out=out)
    return out


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, 10 rounds, on Python's integers."""
    c, k, word = list(counter), list(key), 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k[0], second & word, (first >> 64) ^ c[3] ^ k[1], first & word]
        k = [(k[0] + 0x9E3779B97F4A7C15) & word, (k[1] + 0xBB67AE8584CAA73B) & word]
    return c


def test_the_bits_are_those_of_the_equation() -> None:
    num_rows, width, rate, seed = 3, 37, 0.4, 2**62 + 5
    kept = masked(torch.ones(num_rows, width), rate, seed) > 0
    for row in range(num_rows):
        for column in range(width):
            block = philox4x64([1 + row * 3 + column // 16, *STREAM], [seed, 0])
            word = column % 16
            bits = block[word // 4] >> 16 * (word % 4) & 0xFFFF
            assert kept[row, column] == (bits >= round(rate * 2**16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_kept_is_scaled_and_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x_TK = torch.randn(5, 100).to(dtype)
    out_TK = masked(x_TK)
    is_kept = out_TK != 0
    wide = torch.promote_types(dtype, torch.float32)
    truth = (x_TK.to(wide) * torch.tensor(65536 / 49152, dtype=wide)).to(dtype)
    assert torch.equal(out_TK, torch.where(is_kept, truth, 0))


def test_the_mask_follows_from_seed_and_stream_only() -> None:
    ones = torch.ones(4, 500)
    first = masked(ones)
    assert torch.equal(first, masked(ones))
    assert torch.equal(first[:2], masked(ones[:2]))
    others = [masked(ones, seed=8)]
    others += [masked(ones, stream=stream) for stream in ((4, 1, 0), (3, 2, 0), (3, 1, 1))]
    for other in others:
        # Independent masks of rate 1/4 are alike in 10 of 16 places; 2,000 places: +- 0.011.
        assert abs((first == other).double().mean().item() - 0.625) < 0.055


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_as_many_are_left_out_as_asked(rate: float) -> None:
    kept = masked(torch.ones(100, 1000), rate) > 0
    deviation = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs((~kept).double().mean().item() - rate) < 5 * deviation
    # Neither places in a row nor rows in a place are less even than chance: chi-square of 1,000 and 100 sums.
    for sums, count in ((kept.sum(0), 100), (kept.sum(1), 1000)):
        spread = (sums - count * (1 - rate)).square().sum() / (count * rate * (1 - rate))
        assert abs(spread.item() - len(sums)) < 5 * (2 * len(sums)) ** 0.5


def test_in_place_and_rows_far_apart() -> None:
    room = torch.full((6, 40), 7.0)
    x_TK, expected = room[:, 3:24], masked(torch.full((6, 21), 7.0))
    dropout(x_TK, rate=0.25, seed=torch.tensor([7]), stream=STREAM, out=x_TK)
    assert torch.equal(x_TK, expected)
    assert (room[:, :3] == 7).all()
    assert (room[:, 24:] == 7).all()


def test_the_expected_value_is_exact_whatever_the_rate_rounds_to() -> None:
    for rate in (0.0, 1e-6, 0.1, 1 / 3, 1 - 1e-7):
        share = 1 - num_dropped(rate) / 2**16
        assert share > 0
        assert np.isclose(scale(rate) * share, 1, rtol=1e-15)
        assert abs(num_dropped(rate) / 2**16 - rate) <= 2**-16
