"""Inputs of layers in the host's memory: what comes back, when, and what stays on the device meanwhile."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from fam_engine.model.training import layer_inputs
from fam_engine.model.training.layer_inputs import HostMemory, HostMemoryError, LayerInputs

CPU = torch.device("cpu")


def inputs_of(num_layers: int, num_tokens: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_tokens, 4, generator=generator) for _ in range(num_layers)]


# Chunks of 5 rows of 16 bytes: less than one, as many as fill some, and others.
@pytest.mark.parametrize("num_tokens", [1, 5, 10, 13])
@pytest.mark.parametrize("num_on_host", [0, 1, 3])
def test_they_come_back_as_they_were(
    monkeypatch: pytest.MonkeyPatch, num_tokens: int, num_on_host: int
) -> None:
    monkeypatch.setattr(layer_inputs, "_CHUNK_BYTES", 5 * 16 + 3)
    host = HostMemory(CPU)
    for seed, tokens in enumerate((num_tokens, 7, num_tokens)):
        given = inputs_of(4, tokens, seed)
        inputs = LayerInputs(host, num_on_host, given[0])
        for index, x_TD in enumerate(given):
            inputs.put(index, x_TD.clone())
        for index in reversed(range(4)):
            assert torch.equal(inputs.take(index), given[index])
    # One after the other, and no more for another micro-batch of no more tokens.
    assert len(host._chunks) == -(-num_on_host * max(num_tokens, 7) // 5)


def test_what_is_on_the_host_is_held_there_only() -> None:
    """Of the first two of four layers; while one is computed the one below it comes back."""
    given = inputs_of(4, 3)
    held = [weakref.ref(x_TD) for x_TD in given]
    inputs = LayerInputs(HostMemory(CPU), 2, given[0])
    alive = []
    for index in range(4):
        inputs.put(index, given.pop(0))
        alive.append([reference() is not None for reference in held[: index + 1]])
    assert alive == [[True], [False, True], [False, False, True], [False, False, True, True]]
    on_device = []
    for index in reversed(range(4)):
        x_TD = inputs.take(index)
        on_device.append(sorted(inputs._held))
        del x_TD
    assert on_device == [[2], [1], [0], []]


def test_a_host_without_room_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_inputs, "_CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(layer_inputs, "free_bytes", lambda _: 4 << 10)
    host, x_TD = HostMemory(CPU), torch.zeros(64, 4)
    with pytest.raises(HostMemoryError, match="inputs of layers take 4096 bytes more"):
        LayerInputs(host, 4, x_TD)
    # Nothing was taken; of three there is room, and of four with those.
    LayerInputs(host, 3, x_TD)
    LayerInputs(host, 4, x_TD)


def test_a_driver_without_page_locked_memory_is_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(HostMemoryError, match="page-locked memory: CUDA error"):
        LayerInputs(HostMemory(CPU), 1, torch.zeros(3, 4))


def test_what_was_locked_before_the_driver_refused_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No step asks for it again."""
    monkeypatch.setattr(layer_inputs, "_CHUNK_BYTES", 1 << 10)
    made: list[weakref.ref[torch.Tensor]] = []
    empty = torch.empty

    def refuse_the_third(*shape: int, **options: Any) -> torch.Tensor:  # noqa: ANN401
        if len(made) == 2:
            raise RuntimeError("CUDA error: out of memory")
        chunk = empty(*shape, **options)
        made.append(weakref.ref(chunk))
        return chunk

    monkeypatch.setattr(torch, "empty", refuse_the_third)
    host = HostMemory(CPU)
    with pytest.raises(HostMemoryError):
        LayerInputs(host, 3, torch.zeros(64, 4))
    assert [chunk() for chunk in made] == [None, None]
