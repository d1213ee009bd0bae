"""Inputs of layers in the host's memory, on an NVIDIA GPU: they come back as they were, whatever is computed."""

from __future__ import annotations

import pytest
import torch

from fam_engine.model.training.layer_inputs import HostMemory, LayerInputs
from tests.simulated.gpu import is_simulated

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

NUM_LAYERS = 6


@pytest.mark.parametrize("num_on_host", [0, 1, 4, 5])
def test_inputs_come_back_as_they_were(num_on_host: int) -> None:
    """Every layer's input is new memory, what nobody holds any longer is soon overwritten, and the host never waits."""
    # On a real GPU three chunks of 32 MiB each, whose copies take longer than the layers here.
    shape = (5, 8) if is_simulated() else (20_000, 1024)
    host, num_wrong = HostMemory(torch.device("cuda")), torch.zeros((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for micro_batch in range(3):
            num_wrong += _walk(
                host, num_on_host, torch.full(shape, float(micro_batch), device="cuda")
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert num_wrong.item() == 0


def test_a_walk_that_ends_half_way_disturbs_nobody() -> None:
    shape = (5, 8) if is_simulated() else (20_000, 1024)
    host, x_TD = HostMemory(torch.device("cuda")), torch.zeros(shape, device="cuda")
    inputs = LayerInputs(host, NUM_LAYERS - 1, x_TD)
    for index in range(NUM_LAYERS):
        inputs.put(index, x_TD)
        x_TD = x_TD.clone()
    for index in (5, 4):  # and 3 is on its way
        inputs.take(index)
    inputs.close()
    del inputs, x_TD
    others = [torch.ones(shape, device="cuda") for _ in range(3)]
    torch.cuda.synchronize()
    assert all((x == 1).all().item() for x in others)


def _walk(host: HostMemory, num_on_host: int, x_TD: torch.Tensor) -> torch.Tensor:
    """Go up through layers that each give 2 x + their number, and down again; count values that are not as before."""
    start = x_TD.clone()
    inputs = LayerInputs(host, num_on_host, x_TD)
    for index in range(NUM_LAYERS):
        inputs.put(index, x_TD)
        x_TD = 2 * x_TD + index
    del x_TD
    num_wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for index in reversed(range(NUM_LAYERS)):
        x_TD, expected = inputs.take(index), start
        for below in range(index):
            expected = 2 * expected + below
        num_wrong += (x_TD != expected).sum()
        x_TD.fill_(torch.nan)
        del x_TD
    return num_wrong


def test_the_device_holds_one_input_beside_the_layer_s() -> None:
    if is_simulated():
        pytest.skip("the simulated GPU counts no bytes")
    shape = (8192, 1024)
    num_bytes, host = 4 * 8192 * 1024, HostMemory(torch.device("cuda"))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    x_TD = torch.zeros(shape, device="cuda")
    inputs = LayerInputs(host, NUM_LAYERS - 1, x_TD)
    for index in range(NUM_LAYERS):
        inputs.put(index, x_TD)
        x_TD = x_TD + 1
    del x_TD
    for index in reversed(range(NUM_LAYERS)):
        inputs.take(index)
    # An input and the output that is the next one's; going back an input and the one below it.
    assert torch.cuda.max_memory_allocated() - before == 2 * num_bytes
    assert torch.cuda.memory_allocated() == before
