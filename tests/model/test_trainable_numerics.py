"""What training keeps in memory, which bits it gives, and how an adapter begins."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fam_engine.errors import UsageError
from fam_engine.model.loading import load_model
from fam_engine.model.trainable import LoraSpec, TrainableModel
from fam_engine.model.weights import Weights
from tests.model.conftest import TinyCheckpoint
from tests.model.packing_reference import Entry, pack_reference
from tests.model.plain import random_entries
from tests.model.test_parity import load_double
from tests.model.training.reference import (
    ALL,
    entries_with_siblings,
    largest_difference,
    loss_and_gradients,
    spec_of,
    token_weights,
    trainable,
)


def peft_model(model: torch.nn.Module, lora: peft.LoraConfig) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses what transformers calls deprecated
        return peft.get_peft_model(model, lora)  # type: ignore[arg-type]


def peft_of(
    folder: Path, model: TrainableModel
) -> tuple[torch.nn.Module, dict[str, torch.nn.Parameter]]:
    """Give their model in float64, and its leaves by our names, with our values.

    Their float64 has norms of float64 put in (tests/model/test_parity.py).
    """
    spec = model.spec
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]
        target_modules=list(spec.target_modules),
        use_rslora=spec.use_rslora,
    )
    theirs = peft_model(load_double(folder), lora).double()
    leaves = {
        name.replace(".default", ""): leaf
        for name, leaf in theirs.named_parameters()
        if leaf.requires_grad
    }
    assert list(leaves) == list(model.parameters)
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(model.parameters[name])
    return theirs, leaves


def peft_nll(theirs: torch.nn.Module, entry: Entry) -> torch.Tensor:
    """Give the losses of an entry's targets in a plain forward pass of its own, nats."""
    context, targets = entry
    logits_TV = theirs(torch.tensor([[*context, *targets]])).logits[
        0
    ]  # their own loss is made in fp32
    return torch.nn.functional.cross_entropy(
        logits_TV[len(context) - 1 : -1], torch.tensor(targets), reduction="none"
    )


def loss_and_gradients_of_peft(
    folder: Path, model: TrainableModel, entry: Entry
) -> tuple[float, dict[str, torch.Tensor]]:
    """Give their mean loss and gradients, in float64, of an adapter with our values."""
    theirs, leaves = peft_of(folder, model)
    loss = peft_nll(theirs, entry).mean()
    loss.backward()
    return loss.item(), {name: leaf.grad for name, leaf in leaves.items()}  # type: ignore[misc]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_equals_transformers_with_peft(
    tiny_checkpoint: TinyCheckpoint, model_type: str, use_rslora: bool
) -> None:
    folder = tiny_checkpoint(model_type)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of(use_rslora=use_rslora))
    (entry,) = random_entries(decoder.config.vocab_size, [(9, 40)])
    loss, gradients = loss_and_gradients(
        model, pack_reference([entry]), [torch.ones(40).double() / 40]
    )
    expected_loss, expected = loss_and_gradients_of_peft(folder, model, entry)
    assert abs(loss - expected_loss) <= 1e-9
    assert largest_difference(gradients, expected) <= 1e-9


def test_an_adapter_begins_as_in_peft(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama")
    decoder = load_model(folder, precision="nf4", compute_dtype="bf16")
    spec = LoraSpec(64, 16, 0.0, ALL, False)
    ours = TrainableModel(decoder, spec, seed=3).parameters
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=64, target_modules=list(ALL))
    theirs = peft.get_peft_model_state_dict(peft_model(base, lora))
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert parameter.shape == theirs[name].shape
        assert parameter.dtype == torch.float32
        assert parameter.is_leaf
        assert parameter.requires_grad
        if "lora_B" in name:
            assert not parameter.any()
            continue
        bound = 1 / math.sqrt(parameter.shape[1])
        for values in (parameter, theirs[name]):  # uniform: spread and edges
            assert float(values.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
            assert 0.99 * bound < float(values.detach().abs().max()) <= bound


def test_the_seed_decides_how_an_adapter_begins(tiny_checkpoint: TinyCheckpoint) -> None:
    decoder = load_model(tiny_checkpoint("llama"), precision="nf4", compute_dtype="bf16")
    state = torch.get_rng_state()
    first, same, other = (
        TrainableModel(decoder, spec_of(), seed=seed).parameters for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name in first:
        assert torch.equal(first[name], same[name])
        if "lora_A" in name:
            assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ((0, 1.0, 0.0, ALL), "rank 0"),
        ((10**6, 1.0, 0.0, ALL), "rank 1000000"),
        ((4, 0.0, 0.0, ALL), "alpha 0.0"),
        ((4, math.nan, 0.0, ALL), "alpha nan"),
        ((4, 1.0, 1.0, ALL), "dropout 1.0"),
        ((4, 1.0, -0.1, ALL), "dropout -0.1"),
        ((4, 1.0, 0.0, ()), "no target modules"),
        ((4, 1.0, 0.0, ("q_proj", "lm_head")), "target module `lm_head`, expected some of q_proj"),
    ],
)
def test_a_form_that_cannot_be_is_refused(
    values: tuple[int, float, float, tuple[str, ...]], match: str
) -> None:
    with pytest.raises(UsageError, match=f"E_LORA.*{match}"):
        LoraSpec(*values, use_rslora=False)


def test_dropout_follows_from_the_seed_alone(tiny_checkpoint: TinyCheckpoint) -> None:
    decoder = load_model(tiny_checkpoint("qwen2"), precision="nf4", compute_dtype="fp32")
    batch = pack_reference(entries_with_siblings(decoder.config.vocab_size))
    ones = [torch.ones(batch.num_rows)]
    model = trainable(decoder, spec_of(dropout=0.3))
    loss, gradients = loss_and_gradients(model, batch, ones, dropout_seed=11)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    resumed = trainable(decoder, spec_of(dropout=0.3))
    torch.set_rng_state(state)
    again = loss_and_gradients(resumed, batch, ones, dropout_seed=11)
    assert torch.equal(torch.get_rng_state(), state)
    assert again[0] == loss
    assert all(torch.equal(again[1][name], gradients[name]) for name in gradients)
    assert loss_and_gradients(model, batch, ones, dropout_seed=12)[0] != loss
    assert loss_and_gradients(model, batch, ones, dropout_seed=None)[0] != loss


def test_the_backward_pass_has_the_forward_pass_s_masks(tiny_checkpoint: TinyCheckpoint) -> None:
    """The gradient along a line against finite differences, in float64, masks held by the seed."""
    decoder = load_model(tiny_checkpoint("llama"), precision="fp32", compute_dtype="fp64")
    model = trainable(decoder, spec_of(dropout=0.4))
    entries = entries_with_siblings(decoder.config.vocab_size)
    batch, weights = pack_reference(entries), token_weights(entries)
    _, gradients = loss_and_gradients(model, batch, weights, dropout_seed=4)
    torch.manual_seed(0)
    line = {name: torch.randn_like(gradient) for name, gradient in gradients.items()}
    losses = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for name, parameter in model.parameters.items():
                parameter += step * line[name]
            nll_R = model.reference_nll(batch, dropout_seed=4)
            losses.append((torch.cat(weights) * nll_R).sum().item())
    slope = sum((gradients[name] * line[name]).sum().item() for name in gradients)
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_the_same_bits_each_time_on_two_threads(tiny_checkpoint: TinyCheckpoint) -> None:
    """Batches so large that torch divides its work; many siblings of one prompt."""
    folder = tiny_checkpoint("qwen2", num_hidden_layers=2)
    decoder = load_model(folder, precision="nf4", compute_dtype="fp32")
    model = trainable(decoder, spec_of(dropout=0.1))
    (prompt, _), *others = random_entries(decoder.config.vocab_size, [(70, 9), *[(5, 20)] * 40])
    batch = pack_reference([(prompt, target) for _, target in others] + others)
    torch.set_num_threads(2)
    try:
        ones = [torch.ones(batch.num_rows)]
        first, *rest = (loss_and_gradients(model, batch, ones, dropout_seed=1) for _ in range(4))
    finally:
        torch.set_num_threads(1)
    for loss, gradients in rest:
        assert loss == first[0]
        assert all(torch.equal(gradients[name], first[1][name]) for name in gradients)


class Tensors(TorchDispatchMode):
    """Notes the largest storage any operation returns, and which are alive; the model's aside."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.largest = 0
        self._weights = {StorageWeakRef(tensor.untyped_storage()) for tensor in weights.tensors()}
        self._seen: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(  # type: ignore[override]
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                size = tensor.untyped_storage().nbytes()
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference not in self._weights:
                    self.largest = max(self.largest, size)
                    self._seen[reference] = size
        return result

    def alive(self) -> int:
        return sum(size for storage, size in self._seen.items() if not storage.expired())


def test_memory(tiny_checkpoint: TinyCheckpoint) -> None:
    """Of 6 layers, kept for the backward pass: their inputs, and the gradient of the head."""
    folder = tiny_checkpoint("llama", num_hidden_layers=6, vocab_size=9000)
    decoder = load_model(folder, precision="nf4", compute_dtype="fp32")
    model = trainable(decoder, spec_of(dropout=0.1))
    batch = pack_reference(random_entries(9000, [(128, 128)] * 8))
    num_tokens, num_rows, width = len(batch.input_ids), batch.num_rows, 64
    assert (num_tokens, num_rows) == (2048, 1024)
    with Tensors(decoder.weights) as tensors:
        nll_R = model.reference_nll(batch, dropout_seed=0)
        kept = tensors.alive()
        nll_R.sum().backward()
    # A float32 of every token and feature 6 times, of every row twice (the head's gradient and the
    # last norm's input); cos, sin, ids and masks are small.
    inputs = 4 * width * (6 * num_tokens + 2 * num_rows)
    assert inputs <= kept <= 1.15 * inputs
    # A tile of logits is 2 MiB; all of them would be 37 MB.
    assert tensors.largest <= 2 * 2**20
