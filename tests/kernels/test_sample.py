"""The reference of choosing tokens, against the choice that generation makes on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fam_engine.kernels.sample import sample, uniform
from fam_engine.model.generation.requests import Sampling
from fam_engine.model.generation.sampling import choose_tokens
from tests.kernels.numbers import seeds_of


@pytest.mark.parametrize(("vocab_size", "scale"), [(1, 1.0), (7, 2.0), (3000, 4.0), (3000, 0.1)])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=1.5, top_k=5),
        Sampling(temperature=1.0, top_k=40, top_p=0.8),
        Sampling(temperature=1.0, top_p=1e-6),
    ],
)
def test_equals_what_generation_does(vocab_size: int, scale: float, sampling: Sampling) -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, vocab_size) * scale
    seeds, positions = torch.randint(-(2**62), 2**62, (200,)), torch.arange(200)
    tokens, logprobs = sample(
        logits,
        seeds,
        positions,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
    assert torch.equal(tokens, choose_tokens(logits, uniform(seeds, positions), sampling))
    truth = -torch.nn.functional.cross_entropy(logits.double(), tokens, reduction="none")
    assert torch.allclose(logprobs, truth, rtol=0, atol=1e-12)


def test_equal_logits_come_in_order() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0, 3.0]]).repeat(4, 1)
    counted = seeds_of(torch.tensor([0.0, 0.4, 0.6, 0.99], dtype=torch.float64))
    assert sample(logits, *counted, temperature=0.0, top_p=1.0, top_k=0)[0].tolist() == [1] * 4
    tokens, _ = sample(logits, *counted, temperature=1.0, top_p=1.0, top_k=2)
    assert tokens.tolist() == [1, 1, 2, 2]


def test_numbers_are_those_of_splitmix64() -> None:
    """What implementations of it are tested with: its first outputs for the seed 1234567 (Rosetta Code)."""
    outputs = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    numbers = uniform(torch.full((5,), 1234567), torch.arange(5))
    assert numbers.tolist() == [(output >> 11) * 2.0**-53 for output in outputs]


def test_numbers_are_spread_and_counted() -> None:
    seeds = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63, 40))
    numbers = uniform(seeds.repeat_interleave(50), torch.arange(50).repeat(40))
    assert len(set(numbers.tolist())) == 2000
    assert 0 <= numbers.min() < numbers.max() < 1
    assert (numbers.histc(10, 0, 1) - 200).abs().max() < 60
    # Neither two positions of a seed nor two seeds at a position go together.
    for table in (numbers.reshape(40, 50), numbers.reshape(40, 50).T):
        correlations = table.corrcoef().fill_diagonal_(0)
        assert correlations.abs().max() < 5 / table.shape[1] ** 0.5
