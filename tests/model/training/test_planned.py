"""The walk without autograd against the path torch differentiates: losses and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fam_engine.config import Precision
from fam_engine.data.packing import PackedBatch
from fam_engine.jobs.training.losses import LossSettings
from fam_engine.jobs.training.losses import token_weights as token_weights_of
from fam_engine.jobs.training.optim import BETAS, EPS, AdamW
from fam_engine.model.devices import ComputeDtype
from fam_engine.model.loading import load_model
from fam_engine.model.trainable import Policy, TrainableModel
from tests.model.conftest import TinyCheckpoint, one_thread, tiny_checkpoint
from tests.model.packing_reference import pack_reference
from tests.model.plain import random_entries
from tests.model.test_trainable_numerics import loss_and_gradients_of_peft, peft_nll, peft_of
from tests.model.training.reference import (
    ALL,
    entries_with_siblings,
    spec_of,
    take_gradients,
    token_weights,
    trainable,
    true_loss_and_gradients,
)

__all__ = ["one_thread", "tiny_checkpoint"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "one layer": ("llama", {"num_hidden_layers": 1}),
    "window": ("mistral", {"sliding_window": 11}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
}
SEED = 5

Gradients = dict[str, torch.Tensor]


def by_autograd(
    model: TrainableModel, batch: PackedBatch, weights_R: torch.Tensor, *, seed: int | None = SEED
) -> tuple[torch.Tensor, Gradients]:
    nll_R = model.reference_nll(batch, dropout_seed=seed)
    (weights_R * nll_R).sum().backward()
    return nll_R.detach(), take_gradients(model)


def by_hand(
    model: TrainableModel,
    batch: PackedBatch,
    weights_R: torch.Tensor,
    *,
    num_whole: int,
    offload: bool = False,
    seed: int | None = SEED,
) -> tuple[torch.Tensor, Gradients]:
    nll_R = model.forward_backward(
        batch, lambda _: weights_R, dropout_seed=seed, policy=Policy(num_whole, offload)
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


@pytest.mark.parametrize("target_modules", [*[(name,) for name in ALL], ("v_proj", "up_proj")])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_any_of_the_matrices(
    tiny_checkpoint: TinyCheckpoint, target_modules: tuple[str, ...], dropout: float
) -> None:
    folder = tiny_checkpoint("qwen2", num_hidden_layers=2)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of(target_modules, dropout=dropout))
    entries = random_entries(decoder.config.vocab_size, [(5, 9), (1, 3)])
    batch, weights_R = pack_reference(entries), torch.cat(token_weights(entries))
    expected_R, expected = by_autograd(model, batch, weights_R)
    nll_R, gradients = by_hand(model, batch, weights_R, num_whole=1)
    torch.testing.assert_close(nll_R, expected_R, rtol=1e-10, atol=0)
    assert largest_error(gradients, expected) <= 1e-10


def test_segments_longer_than_a_block_of_queries(tiny_checkpoint: TinyCheckpoint) -> None:
    """A response of three runs with a window, whose keys begin in the prompt, and its sibling."""
    folder = tiny_checkpoint(
        "mistral", num_hidden_layers=2, sliding_window=700, max_position_embeddings=4096
    )
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of(("k_proj", "v_proj", "down_proj")))
    long, short = random_entries(decoder.config.vocab_size, [(600, 1100), (20, 30)])
    entries = [long, short, (long[0], short[1])]
    batch, weights_R = pack_reference(entries), torch.cat(token_weights(entries))
    expected_R, expected = by_autograd(model, batch, weights_R)
    nll_R, gradients = by_hand(model, batch, weights_R, num_whole=1)
    torch.testing.assert_close(nll_R, expected_R, rtol=1e-10, atol=0)
    assert largest_error(gradients, expected) <= 1e-10


def test_micro_batches_add_up(tiny_checkpoint: TinyCheckpoint) -> None:
    """Gradients are added to those there are, and of no token nothing is added."""
    decoder = load_model(tiny_checkpoint("llama"), precision="nf4", compute_dtype="fp64")
    model = trainable(decoder, spec_of())
    entries = entries_with_siblings(decoder.config.vocab_size)
    weights = token_weights(entries)
    _, expected = by_autograd(model, pack_reference(entries), torch.cat(weights))
    for a, b in ((0, 4), (4, 5), (5, 9)):
        weights_R = torch.cat(weights[a:b])
        model.forward_backward(
            pack_reference(entries[a:b]),
            lambda _, weights_R=weights_R: weights_R,  # type: ignore[misc]
            dropout_seed=None,
            policy=Policy(1),
        )
    assert largest_error(take_gradients(model), expected) <= 1e-10


def test_a_document_does_not_see_its_neighbours(tiny_checkpoint: TinyCheckpoint) -> None:
    """Neither its losses nor the gradients of its own change with what is packed beside it."""
    decoder = load_model(tiny_checkpoint("qwen3"), precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of())
    entries = random_entries(decoder.config.vocab_size, [(9, 20), (6, 30), (12, 8)])
    others = random_entries(decoder.config.vocab_size, [(30, 4), (6, 30), (3, 50)], seed=5)
    results = []
    for before, after in ((entries[0], entries[2]), (others[0], others[2])):
        batch = pack_reference([before, entries[1], after])
        own = slice(*batch.entry_rows[1:3].tolist())
        weights_R = torch.zeros(batch.num_rows, dtype=torch.float64)
        weights_R[own] = 1.0
        nll_R, gradients = by_hand(model, batch, weights_R, num_whole=1)
        results.append((nll_R[own], gradients))
    (nll_R, gradients), (other_nll_R, other_gradients) = results
    assert (nll_R - other_nll_R).abs().max() <= 1e-12
    assert largest_error(gradients, other_gradients) <= 1e-12


def test_twenty_steps(tiny_checkpoint: TinyCheckpoint) -> None:
    """AdamW from a fresh adapter on weights that follow from the losses, in micro-batches."""
    folder = tiny_checkpoint("qwen3")
    decoder = load_model(folder, precision="nf4", compute_dtype="fp64")
    entries = entries_with_siblings(decoder.config.vocab_size)
    settings = LossSettings(loss="dft")
    losses: dict[str, list[torch.Tensor]] = {"autograd": [], "hand": []}
    models = {name: TrainableModel(decoder, spec_of(dropout=0.1), seed=1) for name in losses}
    for name, model in models.items():
        optimizer = AdamW("adamw", model.parameters, weight_decay=0.01)
        for step in range(20):
            for a, b in ((0, 5), (5, 9)):
                batch = pack_reference(entries[a:b])
                if name == "autograd":
                    nll_R = model.reference_nll(batch, dropout_seed=step)
                    (token_weights_of(nll_R, None, settings) * nll_R).sum().backward()
                else:
                    nll_R = model.forward_backward(
                        batch,
                        lambda nll_R: token_weights_of(nll_R, None, settings),
                        dropout_seed=step,
                        policy=Policy(step % 4),
                    )
                losses[name].append(nll_R.detach())
            optimizer.clip_grad_norm(1.0)
            optimizer.step(1e-3)
    for found, expected in zip(losses["hand"], losses["autograd"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert losses["hand"][-1].mean() < 0.999 * losses["hand"][1].mean()
    for name, parameter in models["hand"].parameters.items():
        torch.testing.assert_close(
            parameter, models["autograd"].parameters[name], rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_twenty_steps_are_those_of_transformers_peft_and_torch(
    tiny_checkpoint: TinyCheckpoint, model_type: str
) -> None:
    """In float64: theirs a record at a time, ours in micro-batches with shared prompts; norms are clipped."""
    folder = tiny_checkpoint(model_type, num_hidden_layers=2)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of())
    theirs, leaves = peft_of(folder, model)
    entries = entries_with_siblings(decoder.config.vocab_size)
    num_targets = sum(len(targets) for _, targets in entries)
    batches = [pack_reference(entries[a:b]) for a, b in ((0, 4), (4, 9))]
    ours = AdamW("adamw", model.parameters, weight_decay=0.01)
    adamw = torch.optim.AdamW(leaves.values(), lr=1e-3, betas=BETAS, eps=EPS, weight_decay=0.01)
    losses = []
    for step in range(20):
        found = sum(
            model.forward_backward(
                batch,
                lambda nll_R: torch.ones_like(nll_R) / num_targets,
                dropout_seed=None,
                policy=Policy(step % 3),
            ).sum()
            for batch in batches
        )
        expected = sum(peft_nll(theirs, entry).sum() for entry in entries)
        assert isinstance(expected, torch.Tensor)
        assert abs(found - expected.detach()) / num_targets <= 1e-9
        losses.append(expected.item())
        adamw.zero_grad()
        (expected / num_targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(leaves.values(), 0.5)
        assert ours.clip_grad_norm(0.5) == pytest.approx(norm.item(), rel=1e-9)
        ours.step(1e-3)
        adamw.step()
    assert losses[-1] < 0.99 * losses[0]
    assert model.parameters.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert model.parameters[name].dtype == torch.float64
        assert (model.parameters[name] - leaf).abs().max() <= 1e-9, name


@pytest.mark.parametrize("compute_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_policy_and_a_second_run_change_no_bit(
    tiny_checkpoint: TinyCheckpoint, model_type: str, compute_dtype: ComputeDtype, dropout: float
) -> None:
    decoder = load_model(tiny_checkpoint(model_type), precision="nf4", compute_dtype=compute_dtype)
    model = trainable(decoder, spec_of(dropout=dropout))
    entries = entries_with_siblings(decoder.config.vocab_size)
    batch, weights_R = pack_reference(entries), torch.cat(token_weights(entries))
    torch.set_num_threads(2)
    try:
        first_R, first = by_hand(model, batch, weights_R, num_whole=3)
        others = [
            by_hand(model, batch, weights_R, num_whole=num_whole, offload=offload)
            for num_whole in (3, 2, 1, 0)
            for offload in (False, True)
        ]
    finally:
        torch.set_num_threads(1)
    for nll_R, gradients in others:
        assert torch.equal(nll_R, first_R)
        assert all(torch.equal(gradients[name], first[name]) for name in first)


@pytest.mark.parametrize(
    ("precision", "compute_dtype"),
    [("nf4", "fp32"), ("fp32", "fp32"), ("nf4", "bf16"), ("bf16", "bf16")],
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_working_dtypes_are_as_near_the_truth_as_autograd(
    tiny_checkpoint: TinyCheckpoint,
    precision: Precision,
    compute_dtype: ComputeDtype,
    model_type: str,
) -> None:
    folder = tiny_checkpoint(model_type, initializer_range=0.03)
    decoder = load_model(folder, precision=precision, compute_dtype=compute_dtype)
    model = trainable(decoder, spec_of())
    entries = entries_with_siblings(decoder.config.vocab_size)
    weights = token_weights(entries)
    batch, weights_R = pack_reference(entries), torch.cat(weights)
    true_loss, truth = true_loss_and_gradients(decoder, model, entries, weights)
    results = {
        "autograd": by_autograd(model, batch, weights_R, seed=None),
        "hand": by_hand(model, batch, weights_R, num_whole=1, seed=None),
    }
    losses, errors = {}, {}
    for path, (nll_R, gradients) in results.items():
        losses[path] = abs((nll_R * weights_R).sum().item() / true_loss - 1)
        errors[path] = {
            name: ((gradients[name] - value).norm() / value.norm()).item()
            for name, value in truth.items()
        }
    eps = torch.finfo(decoder.compute_dtype).eps
    assert losses["hand"] <= 2 * losses["autograd"] + eps
    for name in truth:
        assert results["hand"][1][name].dtype == torch.float32
        assert errors["hand"][name] <= 3 * errors["autograd"][name] + 2 * eps, name


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_equals_transformers_with_peft(tiny_checkpoint: TinyCheckpoint, model_type: str) -> None:
    folder = tiny_checkpoint(model_type)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of())
    (entry,) = random_entries(decoder.config.vocab_size, [(9, 40)])
    expected_loss, expected = loss_and_gradients_of_peft(folder, model, entry)
    weights_R = torch.full((40,), 1 / 40, dtype=torch.float64)
    nll_R, gradients = by_hand(model, pack_reference([entry]), weights_R, num_whole=1)
    assert abs(nll_R.mean().item() - expected_loss) <= 1e-9
    assert largest_error(gradients, expected) <= 1e-9


@pytest.mark.parametrize("compute_dtype", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("case", ["qwen2", "window"])
def test_losses_alone_have_the_bits_of_a_step_s(
    tiny_checkpoint: TinyCheckpoint, case: str, compute_dtype: ComputeDtype
) -> None:
    model_type, overrides = CASES[case]
    folder = tiny_checkpoint(model_type, **overrides)
    decoder = load_model(folder, precision="nf4", compute_dtype=compute_dtype)
    model = trainable(decoder, spec_of(ALL, dropout=0.1))
    batch = pack_reference(entries_with_siblings(decoder.config.vocab_size))
    weights_R = torch.ones(batch.num_rows, dtype=torch.float64)
    expected_R, _ = by_hand(model, batch, weights_R, num_whole=1, seed=None)
    found_R = model.token_nll(batch)
    assert torch.equal(found_R, expected_R)
    assert not found_R.requires_grad
    assert all(leaf.grad is None for leaf in model.parameters.values())


@pytest.mark.parametrize("compute_dtype", ["fp64", "fp32", "bf16"])
def test_the_base_is_the_model_with_an_adapter_that_changes_nothing(
    tiny_checkpoint: TinyCheckpoint, compute_dtype: ComputeDtype
) -> None:
    decoder = load_model(tiny_checkpoint("qwen2"), precision="nf4", compute_dtype=compute_dtype)
    model = TrainableModel(decoder, spec_of(), seed=0)
    batch = pack_reference(entries_with_siblings(decoder.config.vocab_size))
    base_R = model.base_token_nll(batch)
    eps = torch.finfo(decoder.compute_dtype).eps
    # An adapter of zeros adds zeros to sums, whose order it may change.
    torch.testing.assert_close(model.token_nll(batch), base_R, rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(
        model.reference_nll(batch, dropout_seed=None), base_R, rtol=8 * eps, atol=8 * eps
    )
    with torch.no_grad():
        for parameter in model.parameters.values():
            parameter.add_(0.1)
    assert torch.equal(model.base_token_nll(batch), base_R)
    assert (model.token_nll(batch) - base_R).abs().max() > 0.01
    assert base_R.shape == (batch.num_rows,)


def test_the_base_can_be_asked_in_between(tiny_checkpoint: TinyCheckpoint) -> None:
    """They share scratch memory, and `weigh` may call it."""
    decoder = load_model(tiny_checkpoint("llama"), precision="nf4", compute_dtype="fp64")
    model = trainable(decoder, spec_of())
    batch = pack_reference(entries_with_siblings(decoder.config.vocab_size))
    weights_R = (model.base_token_nll(batch) < 5).double()
    _, expected = by_autograd(model, batch, weights_R, seed=None)

    def weigh(nll_R: torch.Tensor) -> torch.Tensor:
        return (model.base_token_nll(batch) < 5).to(nll_R.dtype)

    model.forward_backward(batch, weigh, dropout_seed=None, policy=Policy(2))
    assert largest_error(take_gradients(model), expected) <= 1e-10
