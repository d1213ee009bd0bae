"""Choosing tokens, against the reference in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fam_engine.kernels import sample_triton
from fam_engine.kernels.sample import sample as reference
from fam_engine.kernels.sample import uniform
from fam_engine.kernels.sample_triton import sample
from tests.kernels.numbers import seeds_of
from tests.kernels.on import DEVICE

# In parts of the whole: as near to where one token ends a neighbour may be taken.
DISTANCE = 1e-5
WAYS = [
    {"temperature": 0.0, "top_p": 1.0, "top_k": 0},
    {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 0},
    {"temperature": 1.5, "top_p": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8, "top_k": 40},
    {"temperature": 1.0, "top_p": 1e-6, "top_k": 0},
    {"temperature": 1.0, "top_p": 0.5, "top_k": 5000},
    {"temperature": 0.001, "top_p": 0.95, "top_k": 0},
    {"temperature": 100.0, "top_p": 0.95, "top_k": 0},
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rows of 200 logits take two blocks, the last one not full."""
    monkeypatch.setattr(sample_triton, "_PART", 128)


def rows(count: int, vocab_size: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn((count, vocab_size), generator=generator) * scale
    numbers = torch.rand(count, generator=generator, dtype=torch.float64)
    return logits.to(DEVICE), numbers.to(DEVICE)


def is_clear(logits: torch.Tensor, numbers: torch.Tensor, way: dict[str, float]) -> torch.Tensor:
    """Say for which rows a change of `DISTANCE` in the number or in top-p changes nothing."""
    tokens = reference(logits, *seeds_of(numbers), **way)[0]
    clear = torch.ones_like(tokens, dtype=torch.bool)
    for change in (-DISTANCE, DISTANCE):
        number = (numbers + change).clamp(0, 1 - 2.0**-53)
        clear &= reference(logits, *seeds_of(number), **way)[0] == tokens
        if way["top_p"] < 1:
            other = way | {"top_p": max(way["top_p"] + change, 1e-9)}
            clear &= reference(logits, *seeds_of(numbers), **other)[0] == tokens
    return clear


@pytest.mark.parametrize(("vocab_size", "scale"), [(1, 1.0), (128, 0.1), (200, 4.0)])
@pytest.mark.parametrize("way", WAYS)
def test_equals_the_reference(vocab_size: int, scale: float, way: dict[str, float]) -> None:
    logits, numbers = rows(4, vocab_size, scale)
    numbers[0], numbers[1] = 0.0, 1 - 2.0**-53
    counted = seeds_of(numbers)
    tokens, logprobs = sample(logits, *counted, **way)
    expected, _ = reference(logits, *counted, **way)
    clear = is_clear(logits, numbers, way)
    assert clear.sum() >= 2  # the extremes may lie at where tokens end
    assert torch.equal(tokens[clear], expected[clear])
    truth = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert (logprobs - truth).abs().max() <= 4e-6 * (1 + truth.abs().max())


@pytest.mark.parametrize(
    "way", [WAYS[0], WAYS[1], WAYS[2], {"temperature": 1.0, "top_p": 0.77, "top_k": 120}]
)
def test_equal_logits_come_in_order(way: dict[str, float]) -> None:
    # Five values, each dozens of times; +0 and -0 are equal.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-2, 3, (4, 200), generator=generator).float()
    logits[:, ::7] *= -1
    logits, numbers = logits.to(DEVICE), rows(4, 200, 1.0)[1]
    clear = is_clear(logits, numbers, way)
    counted = seeds_of(numbers)
    tokens, _ = sample(logits, *counted, **way)
    assert clear.sum() >= 3
    assert torch.equal(tokens[clear], reference(logits, *counted, **way)[0][clear])


@pytest.mark.parametrize(
    ("way", "kept"),
    [
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 3}, [1, 3, 4]),
        ({"temperature": 1.0, "top_p": 0.5, "top_k": 0}, [1, 3, 4]),
        ({"temperature": 1.0, "top_p": 0.51, "top_k": 0}, [1, 3, 4, 6]),
        ({"temperature": 1.0, "top_p": 0.5, "top_k": 4}, [1, 3]),
        ({"temperature": 0.0, "top_p": 1.0, "top_k": 0}, [1]),
    ],
)
def test_top_k_and_top_p_cut_through_ties_from_the_first(
    way: dict[str, float], kept: list[int]
) -> None:
    logits = torch.full((4, 10), -200.0, device=DEVICE)
    logits[:, [1, 3, 4, 6, 8, 9]] = 3.0
    numbers = (torch.arange(4, dtype=torch.float64, device=DEVICE) + 0.5) / 4
    tokens, _ = sample(logits, *seeds_of(numbers), **way)
    assert tokens.tolist() == [kept[int((i + 0.5) / 4 * len(kept))] for i in range(4)]


def test_top_p_reached_exactly_keeps_no_more() -> None:
    logits = torch.tensor([[-1.0, 0.0, -1.0]], device=DEVICE)
    numbers = torch.tensor([1 - 2.0**-53], dtype=torch.float64, device=DEVICE)
    temperature = math.log2(math.e)  # so that the probabilities are 1/4, 1/2, 1/4
    tokens, _ = sample(logits, *seeds_of(numbers), temperature=temperature, top_p=0.5, top_k=0)
    assert tokens.item() == 1


def test_frequencies_are_the_probabilities() -> None:
    num_rows = 400
    logits = torch.tensor([1.0, -0.5, 0.3, 0.0, 2.0, -1.0, 1.5])
    # Numbers as they are counted in one text.
    seeds, positions = torch.full((num_rows,), 1, device=DEVICE), torch.arange(num_rows)
    logits_RV = logits.repeat(num_rows, 1).to(DEVICE)
    tokens, _ = sample(logits_RV, seeds, positions.to(DEVICE), **WAYS[1])
    expected = logits.softmax(-1) * num_rows
    chi_square = ((tokens.cpu().bincount(minlength=7) - expected) ** 2 / expected).sum().item()
    assert chi_square < 27.9  # exceeded once in 10,000 times with 6 degrees of freedom


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[4]])
def test_what_is_not_finite_is_never_chosen(way: dict[str, float]) -> None:
    logits, numbers = rows(4, 200, 1.0)
    logits[:, 1:] = torch.tensor([-torch.inf, torch.nan, torch.inf]).repeat(100)[:199]
    logits[:, [0, 77, 199]] = 1.0
    counted = seeds_of(numbers)
    tokens, _ = sample(logits, *counted, **way)
    assert set(tokens.tolist()) <= ({0} if way["temperature"] == 0 else {0, 77, 199})
    logits[:] = torch.nan
    assert (sample(logits, *counted, **way)[0] == 0).all()


def test_random_numbers_are_the_reference_s() -> None:
    """With equal logits the token says where the number lies, to one part in 1,000."""
    generator = torch.Generator().manual_seed(3)
    seeds = torch.randint(-(2**63), 2**63 - 1, (16,), generator=generator).to(DEVICE)
    seeds[:3] = torch.tensor([0, -1, -(2**63)])
    positions = (torch.arange(16) * 9973).to(DEVICE)
    tokens, _ = sample(torch.zeros(16, 1000, device=DEVICE), seeds, positions, **WAYS[1])
    assert tokens.tolist() == (uniform(seeds, positions) * 1000).long().tolist()


def test_a_row_does_not_depend_on_its_place_or_neighbours() -> None:
    logits, numbers = rows(4, 200, 3.0)
    order = torch.from_numpy(np.random.default_rng(0).permutation(4)).to(DEVICE)
    room = torch.full((4, 300), torch.nan, device=DEVICE)
    room[:, :200] = logits[order]
    for way in (WAYS[1], WAYS[2]):
        seeds, positions = seeds_of(numbers)
        together = sample(logits, seeds, positions, **way)
        moved = sample(room[:, :200], seeds[order], positions[order], **way)
        assert all(torch.equal(one, many[order]) for one, many in zip(moved, together, strict=True))
