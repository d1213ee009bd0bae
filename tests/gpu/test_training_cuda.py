"""Losses and gradients on an NVIDIA GPU against the same path on the CPU, in float64."""

from __future__ import annotations

import pytest
import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.model.checkpoint import Precision
from fam_engine.model.loading import ComputeDtype, load_model
from fam_engine.model.trainable import LoraSpec, TrainableModel
from tests.model.packing_reference import pack_reference
from tests.model.plain import random_entries
from tests.model.training.reference import ALL, loss_and_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def batch() -> PackedBatch:
    entries = random_entries(2000, [(30, 40), (5, 1), (70, 90)])
    return pack_reference([*entries, (entries[0][0], [3, 1, 4, 1, 5])])


def model_on(device: str, precision: Precision, compute_dtype: ComputeDtype) -> TrainableModel:
    decoder = load_model(
        "embedded",
        precision=precision,
        compute_dtype=compute_dtype,
        device=device,  # type: ignore[arg-type]
    )
    model = TrainableModel(decoder, LoraSpec(8, 16.0, 0.0, ALL, False), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def run(model: TrainableModel) -> tuple[float, dict[str, torch.Tensor]]:
    given = batch()
    device = next(iter(model.parameters.values())).device
    ones = [torch.ones(given.num_rows, dtype=torch.float64, device=device)]
    loss, gradients = loss_and_gradients(model, given, ones)
    return loss, {name: gradient.cpu().double() for name, gradient in gradients.items()}


@pytest.mark.parametrize(
    ("precision", "compute_dtype", "tolerance"),
    [
        ("nf4", "fp64", 1e-9),
        ("nf4", "fp32", 1e-4),
        ("nf4", "bf16", 0.1),  # relative, of a gradient's norm
        ("bf16", "bf16", 0.1),
    ],
)
def test_equal_to_the_cpu_s(
    precision: Precision, compute_dtype: ComputeDtype, tolerance: float
) -> None:
    expected_loss, expected = run(model_on("cpu", precision, "fp64"))
    loss, gradients = run(model_on("cuda", precision, compute_dtype))
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= tolerance * expected[name].norm(), name
