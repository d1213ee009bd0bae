"""Losses, gradients and steps on an NVIDIA GPU: against the CPU in float64, twice the same bits, without waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch

from fam_engine.config import Precision
from fam_engine.data.packing import PackedBatch
from fam_engine.jobs.training.loop import load_parameters
from fam_engine.jobs.training.optim import AdamW
from fam_engine.model.devices import ComputeDtype
from fam_engine.model.loading import load_model
from fam_engine.model.trainable import LoraSpec, Policy, TrainableModel
from fam_engine.model.training import layer_inputs
from tests.model.conftest import TinyCheckpoint, tiny_checkpoint
from tests.model.packing_reference import pack_reference
from tests.model.plain import random_entries
from tests.model.training.reference import ALL, loss_and_gradients, take_gradients
from tests.simulated.gpu import is_simulated

__all__ = ["tiny_checkpoint"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

REAL = pytest.mark.real_gpu
SEED = 2**61 + 7
ONE_WHOLE, ON_HOST = Policy(1), Policy(0, offload=True)
Gradients: TypeAlias = dict[str, torch.Tensor]
Run: TypeAlias = Callable[[TrainableModel], tuple[float, Gradients]]


def batch() -> PackedBatch:
    lengths = [(9, 20), (5, 1), (7, 11)] if is_simulated() else [(30, 40), (5, 1), (70, 90)]
    entries = random_entries(2000, lengths)
    return pack_reference([*entries, (entries[0][0], [3, 1, 4, 1, 5])])


def model_on(
    checkpoint: str,
    device: str,
    precision: Precision,
    compute_dtype: ComputeDtype,
    *,
    dropout: float = 0.0,
) -> TrainableModel:
    decoder = load_model(
        checkpoint,
        precision=precision,
        compute_dtype=compute_dtype,
        device=device,  # type: ignore[arg-type]
    )
    model = TrainableModel(decoder, LoraSpec(8, 16.0, dropout, ALL, False), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def by_autograd(model: TrainableModel) -> tuple[float, Gradients]:
    given = batch()
    device = next(iter(model.parameters.values())).device
    ones = [torch.ones(given.num_rows, dtype=torch.float64, device=device)]
    loss, gradients = loss_and_gradients(model, given, ones, dropout_seed=SEED)
    return loss, {name: gradient.cpu().double() for name, gradient in gradients.items()}


def by_hand(model: TrainableModel, *, policy: Policy = ONE_WHOLE) -> tuple[float, Gradients]:
    nll_R = model.forward_backward(batch(), torch.ones_like, dropout_seed=SEED, policy=policy)
    gradients = take_gradients(model)
    return nll_R.sum().item(), {name: x.cpu().double() for name, x in gradients.items()}


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=REAL), 0.1])
# Torch's autograd knows no simulated GPU.
@pytest.mark.parametrize("run", [pytest.param(by_autograd, marks=REAL), by_hand])
@pytest.mark.parametrize(
    ("precision", "compute_dtype", "tolerance"),
    [
        ("nf4", "fp64", 1e-9),
        pytest.param("nf4", "fp32", 1e-4, marks=REAL),
        ("nf4", "bf16", 0.1),  # relative, of a gradient's norm
        pytest.param("bf16", "bf16", 0.1, marks=REAL),
    ],
)
def test_equal_to_the_cpu_s(
    checkpoint: str,
    run: Run,
    precision: Precision,
    compute_dtype: ComputeDtype,
    tolerance: float,
    dropout: float,
) -> None:
    """With dropout too: masks are the same on any device."""
    expected_loss, expected = by_autograd(
        model_on(checkpoint, "cpu", precision, "fp64", dropout=dropout)
    )
    loss, gradients = run(model_on(checkpoint, "cuda", precision, compute_dtype, dropout=dropout))
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= tolerance * expected[name].norm(), name


@pytest.mark.parametrize(
    ("compute_dtype", "tolerance"),
    [
        ("fp64", 1e-9),
        pytest.param("fp32", 1e-4, marks=REAL),
        pytest.param("bf16", 0.1, marks=REAL),
    ],
)
def test_losses_alone_are_the_cpu_s_and_have_a_step_s_bits(
    checkpoint: str, compute_dtype: ComputeDtype, tolerance: float
) -> None:
    """With the adapter and without, as validation and losses that ask the base compute them."""
    given = batch()
    cpu, cuda = (
        model_on(checkpoint, device, "nf4", dtype)
        for device, dtype in (("cpu", "fp64"), ("cuda", compute_dtype))
    )
    of_step = cuda.forward_backward(given, torch.ones_like, dropout_seed=None, policy=ONE_WHOLE)
    assert torch.equal(cuda.token_nll(given), of_step)
    for ours, theirs in (
        (cuda.token_nll, cpu.token_nll),
        (cuda.base_token_nll, cpu.base_token_nll),
    ):
        assert (ours(given).cpu() - theirs(given)).abs().max() <= tolerance * theirs(given).max()


@REAL
def test_in_bf16_as_near_fp32_as_autograd_is(checkpoint: str) -> None:
    _, truth = by_hand(model_on(checkpoint, "cuda", "nf4", "fp32"))
    model = model_on(checkpoint, "cuda", "nf4", "bf16")
    errors = [
        {name: (gradients[name] - truth[name]).norm() / truth[name].norm() for name in truth}
        for gradients in (by_hand(model)[1], by_autograd(model)[1])
    ]
    for name, error in errors[0].items():
        assert error <= 3 * errors[1][name] + 2**-7, name


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.1, marks=REAL)])
def test_the_policy_and_a_second_run_change_no_bit(checkpoint: str, dropout: float) -> None:
    model = model_on(checkpoint, "cuda", "nf4", "bf16", dropout=dropout)
    loss, expected = by_hand(model, policy=Policy(0))
    for policy in (Policy(0), ONE_WHOLE, Policy(1000)):
        found_loss, found = by_hand(model, policy=policy)
        assert found_loss == loss
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_inputs_in_the_host_s_memory_change_no_bit(
    tiny_checkpoint: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: what the first micro-batch brings back may still be on its way."""
    monkeypatch.setattr(layer_inputs, "_CHUNK_BYTES", 4096)
    folder = tiny_checkpoint("llama", num_hidden_layers=3, vocab_size=2000)
    model = model_on(str(folder), "cuda", "nf4", "bf16")
    loss, expected = by_hand(model, policy=Policy(3))
    for policy in (ON_HOST, ON_HOST):
        found_loss, found = by_hand(model, policy=policy)
        assert found_loss == loss
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_that_is_resumed_ends_in_the_same_bits(checkpoint: str) -> None:
    def steps(model: TrainableModel, optimizer: AdamW, numbers: range) -> None:
        for number in numbers:
            model.forward_backward(batch(), torch.ones_like, dropout_seed=number, policy=Policy(1))
            optimizer.clip_grad_norm(1.0)
            optimizer.step(1e-3)

    def fresh() -> tuple[TrainableModel, AdamW]:
        model = model_on(checkpoint, "cuda", "nf4", "bf16", dropout=0.1)
        return model, AdamW("adamw", model.parameters, weight_decay=0.01)

    (whole, optimizer), (first, stopped), (second, resumed) = fresh(), fresh(), fresh()
    half = 1 if is_simulated() else 3
    steps(whole, optimizer, range(2 * half))
    steps(first, stopped, range(half))
    load_parameters(second.parameters, {n: x.detach().cpu() for n, x in first.parameters.items()})
    resumed.load_state(stopped.state())
    steps(second, resumed, range(half, 2 * half))
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, second.parameters[name]), name


# The simulated GPU's model has one layer, whose input is never on the host.
@pytest.mark.parametrize("policy", [ONE_WHOLE, pytest.param(ON_HOST, marks=REAL)])
@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=REAL), 0.1])
def test_nothing_waits_for_the_gpu(checkpoint: str, dropout: float, policy: Policy) -> None:
    model = model_on(checkpoint, "cuda", "nf4", "bf16", dropout=dropout)
    by_hand(model, policy=policy)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.forward_backward(batch(), torch.ones_like, dropout_seed=SEED, policy=policy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(x.isfinite().all() for x in take_gradients(model).values())
