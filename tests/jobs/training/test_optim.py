from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fam_engine.errors import CorruptStateError, DeviceError
from fam_engine.jobs.training.optim import (
    BETAS,
    EPS,
    AdamW,
    OptimizerName,
    OptimizerState,
    clip_grad_norm,
)


def parameters() -> dict[str, torch.Tensor]:
    # 80 x 64 has enough values for 8-bit moments, 3 x 5 has not: bitsandbytes keeps those in fp32.
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (80, 64), "b.weight": (3, 5)}
    return {n: torch.randn(s, generator=generator).requires_grad_() for n, s in shapes.items()}


def run(optimizer: AdamW, leaves: dict[str, torch.Tensor], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for leaf in leaves.values():
            leaf.grad = torch.randn(leaf.shape, generator=generator)
        optimizer.step(0.01 * (step + 1))


def test_a_step_is_the_published_one() -> None:
    leaves = parameters()
    before = {name: leaf.detach().clone().double() for name, leaf in leaves.items()}
    optimizer = AdamW("adamw", leaves, weight_decay=0.1)
    run(optimizer, leaves, range(1))
    generator = torch.Generator().manual_seed(100)
    for name, leaf in leaves.items():
        assert leaf.grad is None
        gradient = torch.randn(leaf.shape, generator=generator).double()
        # Loshchilov and Hutter 2019, algorithm 2, at t = 1: both bias corrections undo (1 - beta).
        mean, square = (1 - BETAS[0]) * gradient, (1 - BETAS[1]) * gradient**2
        move = (mean / (1 - BETAS[0])) / ((square / (1 - BETAS[1])).sqrt() + EPS)
        expected = before[name] - 0.01 * (move + 0.1 * before[name])
        assert (leaf.detach() - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_state_saved_and_loaded_goes_on_in_the_same_bits(
    name: OptimizerName, tmp_path: Path
) -> None:
    whole = parameters()
    run(AdamW(name, whole, weight_decay=0.01), whole, range(6))
    first, second = parameters(), parameters()
    optimizer = AdamW(name, first, weight_decay=0.01)
    run(optimizer, first, range(3))
    state = optimizer.state()
    save_file(state.tensors, tmp_path / "state.safetensors")
    with torch.no_grad():
        for key, leaf in second.items():
            leaf.copy_(first[key])
    resumed = AdamW(name, second, weight_decay=0.01)
    resumed.load_state(
        OptimizerState(load_file(tmp_path / "state.safetensors"), dict(state.numbers))
    )
    run(resumed, second, range(3, 6))
    for key, leaf in whole.items():
        assert torch.equal(leaf, second[key])


def test_the_moments_of_8_bits_have_8_bits() -> None:
    leaves = parameters()
    optimizer = AdamW("adamw8bit", leaves, weight_decay=0.0)
    run(optimizer, leaves, range(1))
    tensors = optimizer.state().tensors
    assert tensors["a.weight::state1"].dtype == torch.uint8


def test_a_state_of_other_parameters_is_refused() -> None:
    optimizer = AdamW("adamw", parameters(), weight_decay=0.0)
    with pytest.raises(CorruptStateError, match=r"`c\.weight`"):
        optimizer.load_state(OptimizerState({"c.weight::exp_avg": torch.zeros(1)}, {}))


def test_8_bits_are_refused_by_name_where_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", refuse)
    with pytest.raises(DeviceError, match=r"adamw8bit.*no kernel.*--optimizer adamw"):
        AdamW("adamw8bit", parameters(), weight_decay=0.0)


def test_clipping_scales_all_gradients_by_one_factor() -> None:
    leaves = parameters()
    for leaf in leaves.values():
        leaf.grad = torch.ones_like(leaf)
    norm = (80 * 64 + 15) ** 0.5
    assert clip_grad_norm(leaves, 2.0) == pytest.approx(norm)
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert torch.allclose(leaf.grad, torch.full_like(leaf, 2.0 / norm), rtol=1e-5)
    assert clip_grad_norm(leaves, 5.0) == pytest.approx(2.0, rel=1e-5)
    assert clip_grad_norm(leaves, 5.0) == pytest.approx(2.0, rel=1e-5)
