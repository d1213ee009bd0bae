"""Which layer is named when log-probs are not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fam_engine.model.decoder import Decoder
from fam_engine.model.loading import load_model
from fam_engine.model.nonfinite import _first_stages, first_nonfinite
from fam_engine.model.weights import LoraDelta, LoraPart, Weights
from tests.model.conftest import TinyCheckpoint
from tests.model.packing_reference import Entry, pack_reference
from tests.model.plain import facts_of, random_entries

FINITE = "gives it first, its weights are finite"
POISON = 7
# Siblings; a prompt of one token, an answer of one; POISON in no place.
ENTRIES: list[Entry] = [
    ([1, 2, 3], [4, 5]),
    ([1, 2, 3], [6, 8, 9]),
    ([11], [12]),
    ([13, 14, 15], [16] * 30),
]


@pytest.fixture
def decoder(tiny_checkpoint: TinyCheckpoint) -> Decoder:
    return load_model(tiny_checkpoint("qwen3"), precision="fp32", compute_dtype="fp32")


def with_weights(decoder: Decoder, weights: Weights) -> Decoder:
    return Decoder(
        decoder.config,
        weights,
        precision="fp32",
        compute_dtype=torch.float32,
        device=decoder.device,
    )


def changed(
    decoder: Decoder, layer: int, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Decoder:
    """Give the decoder with another matrix or norm."""
    layers = list(decoder.weights.layers)
    old = getattr(layers[layer], name)
    is_norm = isinstance(old, torch.Tensor)
    new = change(old.clone()) if is_norm else replace(old, weight=change(old.weight.clone()))
    layers[layer] = replace(layers[layer], **{name: new})
    return with_weights(decoder, replace(decoder.weights, layers=tuple(layers)))


def lines(decoder: Decoder) -> set[str]:
    """Give the lines of records that all have log-probs that are not finite."""
    assert not any(np.isfinite(facts.logprobs).all() for facts in facts_of(decoder, ENTRIES))
    return set(first_nonfinite(decoder, pack_reference(ENTRIES)))


@pytest.mark.parametrize(
    ("part", "name"),
    [("qkv", "qkv"), ("o", "o"), ("down", "down"), ("post_norm_D", "post_norm")],
)
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_of_a_layer(
    decoder: Decoder, layer: int, part: str, name: str, value: float
) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        # The last row of qkv is a value's: of a nan in queries alone torch's CPU kernel makes 0.
        tensor.view(-1)[-3] = value
        return tensor

    expected = f"layer {layer} gives it first, its weights ({name}) are not finite"
    assert lines(changed(decoder, layer, part, spoil)) == {expected}


def test_an_adapter_that_overflows_belongs_to_the_weights(decoder: Decoder) -> None:
    layers = list(decoder.weights.layers)
    down = layers[1].down
    lora_A, lora_B = (
        torch.full((1, down.in_features), 1e30),
        torch.full((down.out_features, 1), 1e30),
    )
    part = LoraPart(
        row_start=0, row_stop=down.out_features, lora_A=lora_A, lora_B=lora_B, scaling=1.0
    )
    delta = LoraDelta(parts=(part,))
    layers[1] = replace(layers[1], down=replace(down, lora=delta))
    sick = with_weights(decoder, replace(decoder.weights, layers=tuple(layers)))
    assert lines(sick) == {"layer 1 gives it first, its weights (down) are not finite"}


@pytest.mark.parametrize("layer", [0, 2])
def test_values_that_overflow(decoder: Decoder, layer: int) -> None:
    # The product of gate and up is beyond fp32.
    sick = changed(decoder, layer, "gate_up", lambda matrix: matrix * 1e25)
    assert lines(sick) == {f"layer {layer} {FINITE}"}


def test_embedding_and_head(decoder: Decoder) -> None:
    table = decoder.weights.head_VD.clone()
    table[POISON] = torch.nan
    sick = with_weights(decoder, replace(decoder.weights, head_VD=table))
    expected = "the head gives it first, its weights are not finite"
    assert first_nonfinite(sick, pack_reference(ENTRIES)) == [expected] * len(ENTRIES)
    assert first_nonfinite(decoder, pack_reference(ENTRIES)) == [f"the head {FINITE}"] * len(
        ENTRIES
    )


def test_a_record_s_line_is_its_own(decoder: Decoder) -> None:
    table = decoder.weights.embed_VD.clone()
    table[POISON] = torch.nan
    sick = with_weights(decoder, replace(decoder.weights, embed_VD=table))
    poisoned: list[Entry] = [
        ([1, 2, 3], [4, POISON, 5]),
        *ENTRIES,
        ([POISON, 1], [1, 2]),
        # What is predicted last is never an input.
        ([17], [18, POISON]),
    ]
    poisoned += random_entries(6, [(5, 70), (90, 3)])
    bad = "the embedding gives it first, its weights are not finite"
    found = first_nonfinite(sick, pack_reference(poisoned))
    assert [line == bad for line in found] == [True, *[False] * 4, True, False, False, False]
    for entry, line in zip(poisoned, found, strict=True):
        assert first_nonfinite(sick, pack_reference([entry])) == [line]


def test_rows_are_told_from_tokens_where_there_are_as_many() -> None:
    """The other record's place among the rows is one of the first's among the tokens."""
    batch = pack_reference([([1, 2, 3], [4] * 28), ([5, 6, 7], [8] * 28)])
    assert len(batch.input_ids) == len(batch.rows) == 64
    bad = np.zeros(64, bool)
    bad[batch.entry_rows[1]] = True
    well = np.zeros(64, bool)
    assert _first_stages([well, well, bad], batch) == [3, 2]
    assert _first_stages([bad, well, well], batch) == [0, 3]
