"""The reference of choosing tokens, against the choice that generation makes on the CPU."""

from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.sample import sample
from fam_engine.model.generation.requests import Sampling
from fam_engine.model.generation.sampling import choose_tokens


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
    numbers = torch.rand(200, dtype=torch.float64)
    tokens, logprobs = sample(
        logits,
        numbers,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
    assert torch.equal(tokens, choose_tokens(logits, numbers, sampling))
    truth = -torch.nn.functional.cross_entropy(logits.double(), tokens, reduction="none")
    assert torch.allclose(logprobs, truth, rtol=0, atol=1e-12)


def test_equal_logits_come_in_order() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0, 3.0]]).repeat(4, 1)
    numbers = torch.tensor([0.0, 0.4, 0.6, 0.99], dtype=torch.float64)
    assert sample(logits, numbers, temperature=0.0, top_p=1.0, top_k=0)[0].tolist() == [1] * 4
    tokens, _ = sample(logits, numbers, temperature=1.0, top_p=1.0, top_k=2)
    assert tokens.tolist() == [1, 1, 2, 2]
