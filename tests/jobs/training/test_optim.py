from __future__ import annotations

import math
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
        assert leaf.grad is not None
        assert not leaf.grad.any()
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


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("max_norm", [2.0, 1000.0, 0.0])
def test_clipping_scales_all_gradients_by_one_factor(name: OptimizerName, max_norm: float) -> None:
    """Two steps, of which the first is clipped: as the same by gradients scaled before."""
    clipped, scaled = parameters(), parameters()
    norm = (80 * 64 + 15) ** 0.5
    first, second = (AdamW(name, leaves, weight_decay=0.0) for leaves in (clipped, scaled))
    factor = min(1, max_norm / norm) if max_norm else 1
    for scale, limit in ((factor, max_norm), (1, None)):
        for ours, theirs in zip(clipped.values(), scaled.values(), strict=True):
            ours.grad, theirs.grad = torch.ones_like(ours), torch.full_like(ours, scale)
        if limit is not None:
            assert first.clip_grad_norm(limit) == pytest.approx(norm)
        first.step(0.1)
        second.step(0.1)
    for ours, theirs in zip(clipped.values(), scaled.values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    moments = [optimizer.state().tensors for optimizer in (first, second)]
    exact = "exp_avg" if name == "adamw" else "state1"
    assert torch.allclose(*(m[f"b.weight::{exact}"] for m in moments), rtol=1e-5)


def test_the_largest_value_is_of_all_parameters_and_nan_if_one_is() -> None:
    leaves = parameters()
    optimizer = AdamW("adamw", leaves, weight_decay=0.0)
    with torch.no_grad():
        leaves["b.weight"][2, 4] = -7.0
        assert optimizer.largest_value() == 7.0
        leaves["b.weight"][2, 4] = math.nan
    assert math.isnan(optimizer.largest_value())


def test_twenty_steps_are_those_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = AdamW("adamw", ours, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.values(), betas=BETAS, eps=EPS, weight_decay=0.1)
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        for mine, other in zip(ours.values(), theirs.values(), strict=True):
            other.grad = torch.randn(other.shape, generator=generator) * 1.3**step
            mine.grad = other.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 200.0)
        assert optimizer.clip_grad_norm(200.0) == pytest.approx(norm.item())
        optimizer.step(0.01)
        reference.param_groups[0]["lr"] = 0.01
        reference.step()
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        assert (mine - other).abs().max() <= 2e-6
    # A checkpoint's fields are those of torch's.
    fields = {key.rpartition("::")[2] for key in optimizer.state().tensors}
    assert fields == set(reference.state[theirs["a.weight"]])


def test_leaves_and_gradients_are_views_of_one_buffer() -> None:
    leaves = parameters()
    objects, values = dict(leaves), {n: leaf.detach().clone() for n, leaf in leaves.items()}
    optimizer = AdamW("adamw", leaves, weight_decay=0.0)
    optimizer.zero_grad()
    for name, leaf in leaves.items():
        assert leaf is objects[name]
        assert leaf.is_leaf
        assert torch.equal(leaf.detach(), values[name])
        assert leaf.data_ptr() % 64 == leaves["a.weight"].data_ptr() % 64
    assert len({leaf.untyped_storage().data_ptr() for leaf in leaves.values()}) == 1
    grads = [leaf.grad for leaf in leaves.values()]
    # Autograd adds to what is there, and a gradient that was taken away is none.
    (leaves["a.weight"] * 3).sum().backward()
    leaves["b.weight"].grad = None
    assert leaves["a.weight"].grad is grads[0]
    assert optimizer.clip_grad_norm(1.0) == pytest.approx(3 * (80 * 64) ** 0.5)
    optimizer.step(0.1)
    assert torch.equal(leaves["b.weight"].detach(), values["b.weight"])
    assert not torch.equal(leaves["a.weight"].detach(), values["a.weight"])
