"""The truth of training: a plain float64 forward with LoRA, differentiated by torch.

One record at a time, dense, no packing, no shared prompts, nothing computed twice, no `Function` of
ours: `tests.model.plain` with the adapter's matrices as leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.model.decoder import Decoder
from fam_engine.model.lora import Adapter, attach_adapter, tensor_name
from fam_engine.model.trainable import LoraSpec, TrainableModel
from tests.model.packing_reference import Entry
from tests.model.plain import plain_logits, random_entries

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# One-token prompts and answers, and some longer than the sliding windows of the tests.
LENGTHS = [(1, 1), (1, 2), (2, 1), (5, 33), (40, 25), (7, 60)]


def spec_of(
    target_modules: tuple[str, ...] = ALL, *, dropout: float = 0.0, use_rslora: bool = False
) -> LoraSpec:
    return LoraSpec(
        rank=3, alpha=5.0, dropout=dropout, target_modules=target_modules, use_rslora=use_rslora
    )


def trainable(decoder: Decoder, spec: LoraSpec) -> TrainableModel:
    """Make a model whose B are not zero: else A would have no gradient."""
    model = TrainableModel(decoder, spec, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.parameters.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def entries_with_siblings(vocab_size: int) -> list[Entry]:
    """Make entries of which two share a prompt with others, one of them all of it."""
    entries = random_entries(vocab_size, LENGTHS)
    context = entries[3][0]
    return [*entries, (context, [3, 1, 4, 1, 5]), entries[0], (context, [9])]


def token_weights(entries: Sequence[Entry]) -> list[torch.Tensor]:
    """Give every target a weight of its own, some of them 0."""
    torch.manual_seed(3)
    return [torch.rand(len(target)).double().sub(0.2).clamp(min=0) for _, target in entries]


def true_loss_and_gradients(
    decoder: Decoder, model: TrainableModel, entries: Sequence[Entry], weights: list[torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Give the sum of weight * nll and its gradients, by name."""
    leaves = {n: p.detach().double().requires_grad_() for n, p in model.parameters.items()}
    adapter = Adapter(
        rank=model.spec.rank,
        scaling=model.spec.scaling,
        matrices={
            module: (leaves[tensor_name(module, "A")], leaves[tensor_name(module, "B")])
            for module in model.spec.modules(decoder.config)
        },
    )
    adapted = attach_adapter(decoder.weights, adapter, decoder.config, device=decoder.device)
    loss = torch.zeros((), dtype=torch.float64)
    for (context, targets), weight in zip(entries, weights, strict=True):
        logits_TV = plain_logits(decoder.config, adapted, [*context, *targets[:-1]])
        logprobs_TV = logits_TV[len(context) - 1 :].log_softmax(-1)
        loss = loss - (weight * logprobs_TV[torch.arange(len(targets)), list(targets)]).sum()
    loss.backward()
    return loss.item(), {name: leaf.grad for name, leaf in leaves.items()}  # type: ignore[misc]


def loss_and_gradients(
    model: TrainableModel,
    batch: PackedBatch,
    weights: Sequence[torch.Tensor],
    *,
    dropout_seed: int | None = None,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Give ours; gradients are added to what is there already, and then taken away."""
    nll_R = model.reference_nll(batch, dropout_seed=dropout_seed)
    loss = (torch.cat(list(weights)) * nll_R).sum()
    loss.backward()
    return loss.item(), take_gradients(model)


def take_gradients(model: TrainableModel) -> dict[str, torch.Tensor]:
    gradients = {}
    for name, parameter in model.parameters.items():
        assert parameter.grad is not None, name
        gradients[name], parameter.grad = parameter.grad, None
    return gradients


def largest_difference(
    gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> float:
    assert gradients.keys() == expected.keys()
    return max((gradients[name] - expected[name]).abs().max().item() for name in expected)


def split_by_entry(batch: PackedBatch, nll_R: torch.Tensor) -> list[torch.Tensor]:
    return [nll_R[a:b] for a, b in itertools.pairwise(batch.entry_rows.tolist())]
