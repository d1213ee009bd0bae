"""The choice of a token against the definition, row by row in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fam_engine.model.generation.requests import Sampling
from fam_engine.model.generation.sampling import choose_tokens, text_seed


def reference_probs(
    logits_V: npt.NDArray[np.float64], sampling: Sampling
) -> npt.NDArray[np.float64]:
    """Give the distribution that sampling draws from: temperature, then top-k, then top-p."""
    order = np.argsort(-logits_V, kind="stable")
    scaled = logits_V / sampling.temperature
    probs = np.exp(scaled - scaled.max())
    if sampling.top_k:
        probs[order[sampling.top_k :]] = 0
    probs /= probs.sum()
    before = np.concatenate([[0], np.cumsum(probs[order])[:-1]])
    probs[order[before >= sampling.top_p]] = 0
    probs[order[0]] = max(probs[order[0]], 1e-300)
    result: npt.NDArray[np.float64] = probs / probs.sum()
    return result


@pytest.mark.parametrize(
    ("vocab_size", "scale"),
    # 3,000: beyond the candidates; scale 0.1 is so flat that they do not hold the mass of top-p.
    [(7, 2.0), (500, 2.0), (3000, 4.0), (3000, 0.1)],
)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=1.5, top_k=5),
        Sampling(temperature=1.0, top_k=40, top_p=0.8),
        Sampling(temperature=1.0, top_p=1e-6),
        Sampling(temperature=0.001),
    ],
)
def test_frequencies_are_the_probabilities(
    vocab_size: int, scale: float, sampling: Sampling
) -> None:
    num_rows = 2000
    torch.manual_seed(0)
    logits_V = torch.randn(vocab_size) * scale
    # Evenly spread numbers hit each token as often as its probability says, give or take one.
    uniform_R = (torch.arange(num_rows, dtype=torch.float64) + 0.5) / num_rows
    chosen = choose_tokens(logits_V.expand(num_rows, -1), uniform_R, sampling).numpy()
    counts = np.bincount(chosen, minlength=vocab_size)
    expected = reference_probs(logits_V.double().numpy(), sampling) * num_rows
    assert np.abs(counts - expected).max() <= 1 + 1e-3 * num_rows
    assert (counts[expected == 0] == 0).all()


def test_zero_temperature_takes_the_first_of_the_best() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 0.0, -1.0]])
    chosen = choose_tokens(logits, torch.zeros(2, dtype=torch.float64), Sampling())
    assert chosen.tolist() == [1, 0]


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_extreme_numbers_choose_a_token_with_mass(number: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.99)):
        chosen = choose_tokens(logits, torch.tensor([number], dtype=torch.float64), sampling)
        assert chosen.item() in (1, 2)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 3000) * torch.linspace(0.05, 6, 40)[:, None]
    numbers = torch.rand(40, dtype=torch.float64)
    for sampling in (Sampling(temperature=0.9), Sampling(temperature=1.0, top_p=0.95)):
        together = choose_tokens(logits, numbers, sampling)
        alone = [choose_tokens(logits[i : i + 1], numbers[i : i + 1], sampling) for i in range(40)]
        assert torch.equal(together, torch.cat(alone))


def test_every_sample_has_a_seed_of_its_own_in_64_bits() -> None:
    seeds = [text_seed(seed, sample) for seed in range(40) for sample in range(50)]
    assert len(set(seeds)) == 2000
    assert -(2**63) <= min(seeds) < -(2**62) < 2**62 < max(seeds) < 2**63
    assert text_seed(3, 1) == text_seed(3, 1) != text_seed(1, 3)
    assert text_seed(-(10**30), 0) != text_seed(10**30, 0)
