"""A GPU's attention in the step written out: one call a layer, whose kernel here is the plain reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fam_engine.model import ops, varlen_plan
from fam_engine.model.loading import load_model
from fam_engine.model.trainable import Policy
from fam_engine.model.training import varlen
from fam_engine.model.training.row_sums import RowSums
from tests.model.conftest import TinyCheckpoint, one_thread, tiny_checkpoint
from tests.model.packing_reference import pack_reference
from tests.model.test_varlen_plan import one_call, watched
from tests.model.training.reference import (
    entries_with_siblings,
    spec_of,
    take_gradients,
    token_weights,
    trainable,
)
from tests.model.training.test_planned import CASES, by_autograd, by_hand, largest_error

__all__ = ["one_call", "one_thread", "tiny_checkpoint"]


# 8: one call a layer; 1: several, whose gradients add up.
@pytest.mark.parametrize("keys_per_token", [8, 1])
@pytest.mark.parametrize("case", ["llama", "one layer", "window", "qwen3", "smollm3"])
def test_float64_equals_autograd(
    tiny_checkpoint: TinyCheckpoint,
    one_call: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    keys_per_token: int,
) -> None:
    model_type, overrides = CASES[case]
    folder = tiny_checkpoint(model_type, **overrides)
    decoder = load_model(folder, precision="nf4", compute_dtype="fp64")
    model = trainable(decoder, spec_of(dropout=0.1))
    entries = entries_with_siblings(decoder.config.vocab_size)
    batch, weights_R = pack_reference(entries), torch.cat(token_weights(entries))
    expected_R, expected = by_autograd(model, batch, weights_R)
    one_call()
    monkeypatch.setattr(varlen_plan, "KEYS_PER_TOKEN", keys_per_token)
    num_calls = len(varlen.plan_steps(batch))
    assert (num_calls > 2) == (keys_per_token == 1)
    for num_whole in (0, decoder.config.num_layers):
        nll_R, gradients = by_hand(model, batch, weights_R, num_whole=num_whole)
        torch.testing.assert_close(nll_R, expected_R, rtol=1e-10, atol=0)
        assert largest_error(gradients, expected) <= 1e-10


def test_gradients_of_a_shared_prompt_are_added_in_fp32(
    tiny_checkpoint: TinyCheckpoint,
    one_call: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each token is the sum of all that were gathered from it, by the batch's order."""
    decoder = load_model(tiny_checkpoint("llama"), precision="nf4", compute_dtype="fp32")
    model = trainable(decoder, spec_of())
    prompt = [5, 6, 7]
    batch = pack_reference([(prompt, [n, 1]) for n in range(4)], grid=1)
    one_call()
    seen = []
    write = RowSums.write

    def note(self: RowSums, x_S: torch.Tensor, *, out_T: torch.Tensor) -> None:
        seen.append((self.places_S.tolist(), self.starts_T.tolist()))
        write(self, x_S, out_T=out_T)

    monkeypatch.setattr(RowSums, "write", note)
    model.forward_backward(batch, torch.ones_like, dropout_seed=None, policy=Policy(3))
    take_gradients(model)
    # Keys in the order of sequences: the prompt's own, then four times the prompt and one token.
    places = [0, 3, 7, 11, 15, 1, 4, 8, 12, 16, 2, 5, 9, 13, 17, 6, 10, 14, 18]
    assert (places, [0, 5, 10, 15, 16, 17, 18, 19]) in seen
    # Rows that predict: four times the last of the prompt, and each first token.
    assert ([0, 2, 4, 6, 1, 3, 5, 7], [0, 0, 0, 4, 5, 6, 7, 8]) in seen


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "smollm3"])
def test_nothing_waits_for_the_device(
    tiny_checkpoint: TinyCheckpoint,
    one_call: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
) -> None:
    """From the embedding to the last gradient."""
    decoder = load_model(tiny_checkpoint(model_type), precision="nf4", compute_dtype="fp32")
    model = trainable(decoder, spec_of())
    batch = pack_reference(entries_with_siblings(decoder.config.vocab_size))
    one_call()

    def step() -> None:
        model.forward_backward(batch, torch.ones_like, dropout_seed=1, policy=Policy(1))

    step()  # tables of the first batch, made once
    calls = []

    # What the plain reference does by itself, flash does not.
    def attention(query: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, ...]:
        calls.append("forward")
        return torch.zeros_like(query), query.new_zeros(query.shape[1::-1])

    def backward(
        grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, ...]:
        calls.append("backward")
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(key)

    monkeypatch.setattr(ops, "varlen_attention", attention)
    monkeypatch.setattr(ops, "varlen_attention_backward", backward)
    with watched() as (operations, methods):
        step()
    assert operations.count > 500
    assert calls.count("backward") == decoder.config.num_layers
    assert operations.found == []
    assert methods.found == []
