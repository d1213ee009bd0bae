"""Operations with gradients: each hand-written one against finite differences, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from fam_engine.model import ops
from fam_engine.model.nf4 import quantize
from fam_engine.model.training import functions
from fam_engine.model.training.functions import Dropout
from fam_engine.model.weights import Linear, LoraPart
from tests.model.plain import dense
from tests.model.test_products import scratch_for

NO_DROPOUT = Dropout(0.0, torch.zeros(1, dtype=torch.int64))


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def weight_of(kind: str, *, bias: bool) -> Linear:
    parts = [torch.randn(9, 10), torch.randn(5, 10)]
    stored = {
        "nf4": lambda: tuple(map(quantize, parts)),
        "bf16": lambda: torch.cat(parts).bfloat16(),
        "fp32": lambda: torch.cat(parts),
        "fp64": lambda: torch.cat(parts).double(),
    }[kind]()
    return Linear(weight=stored, bias=torch.randn(14).double() if bias else None)


@pytest.mark.parametrize("features", [slice(None), slice(0, 4), slice(4, None)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "bf16", "fp32", "fp64"])
def test_frozen_linear(kind: str, bias: bool, features: slice) -> None:
    weight = weight_of(kind, bias=bias)
    scratch = scratch_for(weight, torch.float64)
    x = rand(3, 10)

    def run(x: torch.Tensor) -> torch.Tensor:
        return functions.frozen_linear(x, weight, scratch, features=features)

    assert gradcheck(run, (x,))
    expected = x @ dense(weight).T[:, features] + (
        0 if weight.bias is None else weight.bias[features]
    )
    torch.testing.assert_close(run(x), expected, rtol=0, atol=1e-12)


def test_frozen_linear_makes_the_weight_ready_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another matrix has had the scratch memory when the backward pass comes."""
    weight, other = weight_of("nf4", bias=False), weight_of("nf4", bias=False)
    scratch = scratch_for(weight, torch.float64)
    x = rand(3, 10)
    calls = []
    dequantize = ops.dequantize
    monkeypatch.setattr(
        ops, "dequantize", lambda *a, **k: (calls.append(1), dequantize(*a, **k))[1]
    )
    out = functions.frozen_linear(x, weight, scratch)
    assert len(calls) == 1  # its two sources at once
    scratch.dense(other)
    out.sum().backward()
    assert len(calls) == 3
    torch.testing.assert_close(x.grad, dense(weight).sum(0).expand(3, 10), rtol=0, atol=1e-12)


def test_choose_rows() -> None:
    rows = np.array([4, 0, 4, 4, 2, 0], np.int32)
    assert gradcheck(lambda x: functions.choose_rows(x, rows), (rand(5, 2, 3),))
    x = rand(5, 3)
    grad = torch.randn(6, 3).double()
    functions.choose_rows(x, rows).backward(grad)
    expected = torch.zeros(5, 3).double().index_add_(0, torch.from_numpy(rows), grad)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-12)


def test_choose_rows_adds_in_a_fixed_order() -> None:
    """torch's own backward of x[rows] adds in any order on two threads (fp32, 2^15 values)."""
    rows = np.zeros(4096, np.int32)
    grad = torch.randn(4096, 64)
    torch.set_num_threads(2)
    try:
        results = []
        for _ in range(3):
            x = torch.zeros(2, 64, requires_grad=True)
            functions.choose_rows(x, rows).backward(grad)
            results.append(x.grad)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_linear_nll() -> None:
    head_VD, targets_R = torch.randn(7, 4).double(), torch.tensor([3, 0, 6])
    assert gradcheck(lambda h: functions.linear_nll(h, head_VD, targets_R), (rand(3, 4),))
    hidden = rand(3, 4)
    with torch.no_grad():
        assert functions.linear_nll(hidden, head_VD, targets_R).grad_fn is None


def test_linear_nll_in_bf16_has_a_bf16_gradient() -> None:
    hidden = rand(3, 4, dtype=torch.bfloat16)
    nll_R = functions.linear_nll(hidden, torch.randn(7, 4).bfloat16(), torch.tensor([3, 0, 6]))
    assert nll_R.dtype == torch.float64
    nll_R.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norm_rope_and_activation_equal_those_of_scoring(dtype: torch.dtype) -> None:
    x = torch.randn(6, 2, 8).to(dtype)
    weight, wide = torch.randn(8).to(dtype), torch.promote_types(dtype, torch.float32)
    cos, sin = torch.randn(6, 4).to(wide), torch.randn(6, 4).to(wide)
    tolerance = {"rtol": torch.finfo(dtype).eps, "atol": 4 * torch.finfo(wide).eps}
    norm = functions.rmsnorm(x, weight, eps=1e-5)
    torch.testing.assert_close(norm, ops.rmsnorm(x, weight, eps=1e-5), **tolerance)
    turned = x.clone()
    ops.rope_(turned, cos, sin)
    torch.testing.assert_close(functions.rope(x, cos, sin), turned, **tolerance)
    gate, up = x.flatten(1).double().chunk(2, dim=-1)
    expected = (torch.nn.functional.silu(gate) * up).to(dtype)
    torch.testing.assert_close(functions.swiglu(x.flatten(1)), expected, **tolerance)


def test_add_lora_to_some_of_the_rows() -> None:
    """Parts on rows 2 to 5 and 5 to 7 of a matrix of which rows 1 to 9 are computed."""
    parts = [
        LoraPart(row_start=a, row_stop=b, lora_A=rand(2, 4), lora_B=rand(b - a, 2), scaling=s)
        for a, b, s in ((2, 5, 0.5), (5, 7, 3.0))
    ]
    out, x = rand(3, 8), rand(3, 4)
    result = functions.add_lora(out, x, parts, first_row=1, dropout=NO_DROPOUT)
    expected = out.clone()
    for part in parts:
        expected[:, part.row_start - 1 : part.row_stop - 1] += (
            part.scaling * x @ part.lora_A.T @ part.lora_B.T
        )
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_add_lora_rounds_once() -> None:
    part = LoraPart(
        row_start=0, row_stop=4, lora_A=torch.randn(2, 4), lora_B=torch.randn(4, 2), scaling=1
    )
    out, x = torch.randn(5, 4).bfloat16(), torch.randn(5, 4).bfloat16()
    result = functions.add_lora(out, x, [part], first_row=0, dropout=NO_DROPOUT)
    exact = out.double() + x.double() @ part.lora_A.double().T @ part.lora_B.double().T
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), exact, rtol=2**-8, atol=1e-6)


def test_dropout_follows_from_its_key_alone() -> None:
    x = torch.ones(200, 100)
    dropout = Dropout(0.25, torch.tensor([7])).of(1).of(2).of(0)
    before = torch.get_rng_state()
    first = dropout.apply(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(first, dropout.apply(x))
    assert first.unique().tolist() == pytest.approx([0, 4 / 3])
    assert gradcheck(dropout.apply, (rand(3, 4),))
    # 20,000 values: the share left out has a standard deviation of 0.003.
    assert abs((first == 0).float().mean() - 0.25) < 0.015
    for seed, stream in ((8, (1, 2, 0)), (7, (2, 1, 0)), (7, (1, 2, 1))):
        other = Dropout(0.25, torch.tensor([seed]), stream)
        same = (other.apply(x) == first).float().mean()
        assert abs(same - (0.25**2 + 0.75**2)) < 0.02  # independent
    assert NO_DROPOUT.apply(x) is x
