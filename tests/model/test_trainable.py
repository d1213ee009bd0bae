"""Losses and gradients against a plain float64 forward that torch differentiates."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fam_engine.config import Precision
from fam_engine.model.devices import ComputeDtype
from fam_engine.model.loading import load_model
from tests.model.conftest import TinyCheckpoint
from tests.model.packing_reference import pack_reference
from tests.model.plain import random_entries
from tests.model.training.reference import (
    ALL,
    entries_with_siblings,
    largest_difference,
    loss_and_gradients,
    spec_of,
    split_by_entry,
    take_gradients,
    token_weights,
    trainable,
    true_loss_and_gradients,
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "one layer": ("llama", {"num_hidden_layers": 1}),
    "one key": ("llama", {"num_key_value_heads": 1}),
    "window": ("mistral", {"sliding_window": 11}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
}


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_float64_equals_the_truth(
    tiny_checkpoint: TinyCheckpoint, case: str, use_rslora: bool
) -> None:
    model_type, overrides = CASES[case]
    folder = tiny_checkpoint(model_type, **overrides)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of(use_rslora=use_rslora))
    entries = entries_with_siblings(decoder.config.vocab_size)
    weights = token_weights(entries)
    loss, gradients = loss_and_gradients(model, pack_reference(entries), weights)
    expected_loss, expected = true_loss_and_gradients(decoder, model, entries, weights)
    assert abs(loss - expected_loss) <= 1e-9
    assert len(gradients) == 2 * 7 * decoder.config.num_layers
    assert largest_difference(gradients, expected) <= 1e-9
    assert min(gradient.abs().max() for gradient in gradients.values()) > 1e-3


@pytest.mark.parametrize("target_modules", [*[(name,) for name in ALL], ("v_proj", "up_proj")])
def test_any_of_the_matrices(
    tiny_checkpoint: TinyCheckpoint, target_modules: tuple[str, ...]
) -> None:
    folder = tiny_checkpoint("qwen2", num_hidden_layers=2)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of(target_modules))
    assert len(model.parameters) == 2 * 2 * len(target_modules)
    entries = random_entries(decoder.config.vocab_size, [(5, 9), (1, 3)])
    weights = token_weights(entries)
    loss, gradients = loss_and_gradients(model, pack_reference(entries), weights)
    expected_loss, expected = true_loss_and_gradients(decoder, model, entries, weights)
    assert abs(loss - expected_loss) <= 1e-9
    assert largest_difference(gradients, expected) <= 1e-9


@pytest.mark.parametrize("precision", ["nf4", "bf16"])
def test_gradients_go_through_the_stored_weights(
    tiny_checkpoint: TinyCheckpoint, precision: Precision
) -> None:
    """The truth has every matrix dequantized by bitsandbytes; 96 columns: blocks straddle rows."""
    decoder = load_model(tiny_checkpoint("qwen2"), precision=precision, compute_dtype="fp64")
    model = trainable(decoder, spec_of())
    entries = entries_with_siblings(decoder.config.vocab_size)
    weights = token_weights(entries)
    loss, gradients = loss_and_gradients(model, pack_reference(entries), weights)
    expected_loss, expected = true_loss_and_gradients(decoder, model, entries, weights)
    assert abs(loss - expected_loss) <= 1e-9
    assert largest_difference(gradients, expected) <= 1e-9


@pytest.mark.parametrize(
    ("precision", "compute_dtype"),
    [("nf4", "fp32"), ("bf16", "fp32"), ("fp32", "fp32"), ("nf4", "bf16"), ("bf16", "bf16")],
)
def test_working_dtypes_are_near_the_truth(
    tiny_checkpoint: TinyCheckpoint, precision: Precision, compute_dtype: ComputeDtype
) -> None:
    folder = tiny_checkpoint("qwen3", initializer_range=0.03)
    decoder = load_model(folder, precision=precision, compute_dtype=compute_dtype)
    model = trainable(decoder, spec_of())
    entries = entries_with_siblings(decoder.config.vocab_size)
    weights = token_weights(entries)
    loss, gradients = loss_and_gradients(model, pack_reference(entries), weights)
    expected_loss, expected = true_loss_and_gradients(decoder, model, entries, weights)
    tolerance = 2e-6 if compute_dtype == "fp32" else 2e-2
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error <= 5 * tolerance, (name, error)


def test_segments_longer_than_a_block_of_queries(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint(
        "mistral", num_hidden_layers=2, sliding_window=700, max_position_embeddings=4096
    )
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of(("k_proj", "down_proj")))
    entries = random_entries(decoder.config.vocab_size, [(600, 700), (20, 30)])
    weights = token_weights(entries)
    _, gradients = loss_and_gradients(model, pack_reference(entries), weights)
    _, expected = true_loss_and_gradients(decoder, model, entries, weights)
    assert largest_difference(gradients, expected) <= 1e-9


def test_micro_batches_add_up_to_the_whole(tiny_checkpoint: TinyCheckpoint) -> None:
    decoder = load_model(tiny_checkpoint("llama"), precision="nf4", compute_dtype="fp64")
    model = trainable(decoder, spec_of())
    entries = entries_with_siblings(decoder.config.vocab_size)
    weights = token_weights(entries)
    loss, gradients = loss_and_gradients(model, pack_reference(entries), weights)
    for pieces in ([0, 4, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]):
        losses = []
        for a, b in itertools.pairwise(pieces):
            nll_R = model.reference_nll(pack_reference(entries[a:b]), dropout_seed=None)
            part = (torch.cat(weights[a:b]) * nll_R).sum()
            part.backward()
            losses.append(part.item())
        assert sum(losses) == pytest.approx(loss, rel=0, abs=1e-11)
        assert largest_difference(take_gradients(model), gradients) <= 1e-12


def test_a_document_does_not_see_its_neighbours(tiny_checkpoint: TinyCheckpoint) -> None:
    """Neither its losses nor its gradients change with what is packed beside it."""
    decoder = load_model(tiny_checkpoint("qwen3"), precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of())
    entries = random_entries(decoder.config.vocab_size, [(9, 20), (6, 30), (12, 8)])
    others = random_entries(decoder.config.vocab_size, [(30, 4), (6, 30), (3, 50)], seed=5)
    results = []
    for neighbours in ((entries[0], entries[2]), (others[0], others[2])):
        batch = pack_reference([neighbours[0], entries[1], neighbours[1]])
        nll_R = split_by_entry(batch, model.reference_nll(batch, dropout_seed=None))[1]
        nll_R.sum().backward()
        results.append((nll_R.detach(), take_gradients(model)))
    (nll_R, gradients), (other_nll_R, other_gradients) = results
    assert (nll_R - other_nll_R).abs().max() <= 1e-12
    assert largest_difference(gradients, other_gradients) <= 1e-12


@pytest.mark.parametrize(("precision", "compute_dtype"), [("fp32", "fp32"), ("bf16", "bf16")])
def test_the_gradient_of_a_document_stops_at_its_neighbours(
    tiny_checkpoint: TinyCheckpoint, precision: Precision, compute_dtype: ComputeDtype
) -> None:
    """By the embedding: documents that share no token, and of one the loss."""
    decoder = load_model(tiny_checkpoint("qwen3"), precision=precision, compute_dtype=compute_dtype)
    model = trainable(decoder, spec_of())
    lengths = [(9, 20), (6, 30), (12, 8)]
    entries = [
        ([40 * number + i for i in context], [40 * number + i for i in targets])
        for number, (context, targets) in enumerate(random_entries(40, lengths))
    ]
    batch = pack_reference(entries)
    decoder.weights.embed_VD.requires_grad_()
    nll_R = model.reference_nll(batch, dropout_seed=None)
    split_by_entry(batch, nll_R)[1].sum().backward()
    gradient_VD = decoder.weights.embed_VD.grad
    assert gradient_VD is not None
    reached = gradient_VD.abs().sum(1) > 0
    context, targets = entries[1]
    assert reached.nonzero().flatten().tolist() == sorted({*context, *targets[:-1]})
