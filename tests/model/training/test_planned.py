"""The walk without autograd against the path torch differentiates: losses and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.model.checkpoint import Precision
from fam_engine.model.loading import load_model
from fam_engine.model.trainable import TrainableModel
from tests.model.conftest import TinyCheckpoint, one_thread, tiny_checkpoint
from tests.model.packing_reference import pack_reference
from tests.model.training.reference import (
    ALL,
    entries_with_siblings,
    spec_of,
    take_gradients,
    token_weights,
    trainable,
)

__all__ = ["one_thread", "tiny_checkpoint"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "one layer": ("llama", {"num_hidden_layers": 1}),
    "window": ("mistral", {"sliding_window": 11}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
}
SEED = 5

Gradients = dict[str, torch.Tensor]


def by_autograd(
    model: TrainableModel, batch: PackedBatch, weights_R: torch.Tensor
) -> tuple[torch.Tensor, Gradients]:
    nll_R = model.token_nll(batch, dropout_seed=SEED)
    (weights_R * nll_R).sum().backward()
    return nll_R.detach(), take_gradients(model)


def by_hand(
    model: TrainableModel, batch: PackedBatch, weights_R: torch.Tensor, *, num_whole: int
) -> tuple[torch.Tensor, Gradients]:
    nll_R = model.forward_backward(
        batch, lambda _: weights_R, dropout_seed=SEED, num_whole=num_whole
    )
    return nll_R, take_gradients(model)


def largest_error(found: Gradients, expected: Gradients) -> float:
    """Give the largest error of a gradient, relative to its own largest value."""
    assert found.keys() == expected.keys()
    return max(
        ((found[name] - value).abs().max() / value.abs().max()).item()
        for name, value in expected.items()
    )


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["nf4", "fp32"])
@pytest.mark.parametrize("case", CASES)
def test_float64_equals_autograd(
    tiny_checkpoint: TinyCheckpoint, case: str, precision: Precision, dropout: float
) -> None:
    model_type, overrides = CASES[case]
    decoder = load_model(
        tiny_checkpoint(model_type, **overrides), precision=precision, compute_dtype="fp64"
    )
    model = trainable(decoder, spec_of(ALL, dropout=dropout))
    entries = entries_with_siblings(decoder.config.vocab_size)
    batch, weights_R = pack_reference(entries), torch.cat(token_weights(entries))
    expected_R, expected = by_autograd(model, batch, weights_R)
    for num_whole in (0, 1, decoder.config.num_layers):
        nll_R, gradients = by_hand(model, batch, weights_R, num_whole=num_whole)
        torch.testing.assert_close(nll_R, expected_R, rtol=1e-10, atol=0)
        assert largest_error(gradients, expected) <= 1e-10
