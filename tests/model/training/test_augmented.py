"""A matrix with its adapters inside the product, against the same written out in float64."""

from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import nf4_dequantize
from fam_engine.model import products
from fam_engine.model.nf4 import quantize
from fam_engine.model.training.augmented import RANK_ALIGNMENT, AugmentedLinear, take_leaves
from fam_engine.model.training.functions import Dropout
from fam_engine.model.weights import Linear, LoraDelta, LoraPart
from tests.model.plain import dense

CPU = torch.device("cpu")
NO_DROPOUT = Dropout(0.0, torch.zeros(1, dtype=torch.int64))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def leaf(*shape: int) -> torch.Tensor:
    return (torch.randn(shape).double() * 0.3).requires_grad_()


def merged(*, bias: bool, rank: int = 3) -> Linear:
    """Three sources of 7, 5 and 6 rows; that in the middle has no adapter."""
    parts = tuple(
        LoraPart(
            row_start=a, row_stop=b, lora_A=leaf(rank, 10), lora_B=leaf(b - a, rank), scaling=s
        )
        for a, b, s in ((0, 7, 0.5), (12, 18, 2.0))
    )
    return Linear(
        weight=tuple(quantize(torch.randn(rows, 10)) for rows in (7, 5, 6)),
        bias=torch.randn(18).double() if bias else None,
        lora=LoraDelta(parts=parts),
    )


@pytest.mark.parametrize("features", [slice(None), slice(0, 7), slice(7, None), slice(7, 12)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("rank", [3, RANK_ALIGNMENT])
def test_product_and_gradients(features: slice, bias: bool, with_residual: bool, rank: int) -> None:
    weight = merged(bias=bias, rank=rank)
    linear = AugmentedLinear(weight, features, dtype=torch.float64)
    assert linear.rank % RANK_ALIGNMENT == 0
    # Memory that is not written must not matter: it could hold anything.
    scratch = torch.full((linear.scratch_values,), torch.nan, dtype=torch.float64)
    x = torch.randn(9, 10).double().requires_grad_()
    dy = torch.randn(9, linear.out_features).double()
    residual = torch.randn_like(dy) if with_residual else None

    full = x @ dense(weight).T + (0 if weight.bias is None else weight.bias)
    expected = full[:, features] + (0 if residual is None else residual)
    leaves = [m for part in weight.lora.parts for m in (part.lora_A, part.lora_B)]  # type: ignore[union-attr]
    truth = torch.autograd.grad((expected * dy).sum(), [x, *leaves], allow_unused=True)

    with torch.no_grad():
        xs = linear.new_input(9, dy).fill_(torch.nan)
        xs[:, :10] = x
        for wanted, given in linear.copies():
            wanted.copy_(given)
        linear.write_inner(xs, NO_DROPOUT)
        y = linear.forward(xs, scratch, residual=residual)
        dys = linear.new_output(9, dy).fill_(torch.nan)
        dys[:, : linear.out_features] = dy
        for _ in range(2):
            linear.write_inner_gradient(dys, linear.inner(xs))
            linear.add_A_gradients(xs, dys, NO_DROPOUT)
        dx = linear.input_gradient(dys, scratch, NO_DROPOUT)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(dx, truth[0], rtol=0, atol=1e-12)
    for matrix, gradient in zip(leaves, truth[1:], strict=True):
        assert (matrix.grad is None) == (gradient is None or not gradient.any())
        if matrix.grad is not None:
            torch.testing.assert_close(matrix.grad, 2 * gradient, rtol=0, atol=1e-12)


def test_features_must_be_whole_sources() -> None:
    with pytest.raises(AssertionError, match="whole sources"):
        AugmentedLinear(merged(bias=False), slice(0, 8), dtype=torch.float64)


def test_the_sum_of_matrix_and_adapter_is_rounded_once() -> None:
    """64.1875 and 0.125 in steps of 0.5: rounded before they are added they would give 64."""
    part = LoraPart(
        row_start=0,
        row_stop=4,
        lora_A=torch.full((1, 64), 2.0**-9).requires_grad_(),
        lora_B=torch.ones(4, 1).requires_grad_(),
        scaling=1.0,
    )
    weight = torch.ones(4, 64).bfloat16()
    weight[:, 5] = 1.1875
    linear = AugmentedLinear(
        Linear(weight=weight, lora=LoraDelta(parts=(part,))), dtype=torch.bfloat16
    )
    scratch = torch.empty(linear.scratch_values, dtype=torch.bfloat16)
    with torch.no_grad():
        take_leaves(linear.copies())
        xs = linear.new_input(1, weight)
        xs[:, :64] = 1
        linear.write_inner(xs, NO_DROPOUT)
        y = linear.forward(xs, scratch)
    assert y.tolist() == [[64.5] * 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("num_rows", "num_columns"),
    [
        (700, 64),  # a nested block is 256 rows
        (300, 192),  # 3 blocks a row: 256 rows again
        (9, 128),  # less than a nested block
        (33, 96),  # blocks straddle rows
    ],
)
def test_rows_with_room_equal_rows_without(
    monkeypatch: pytest.MonkeyPatch, num_rows: int, num_columns: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(nf4_dequantize, "BLOCKS_PER_CHUNK", 64)
    weight = Linear(
        weight=(quantize(torch.randn(num_rows, num_columns)), quantize(torch.randn(5, num_columns)))
    )
    plain = torch.empty(num_rows + 5, num_columns, dtype=dtype)
    products.write_matrix(weight, plain)
    torch.testing.assert_close(plain.double(), dense(weight).to(dtype).double(), rtol=0, atol=0)
    roomy = torch.zeros(num_rows + 5, num_columns + 16, dtype=dtype)
    products.write_matrix(weight, roomy[:, :num_columns])
    assert torch.equal(roomy[:, :num_columns], plain)
    assert not roomy[:, num_columns:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("is_nf4", [False, True])
@pytest.mark.parametrize("num_columns", [64, 96])
def test_what_goes_with_a_matrix(dtype: torch.dtype, is_nf4: bool, num_columns: int) -> None:
    """Each source's own B, rounded once, in its own columns; then zeros. A below as it is."""
    rows, ranks = (7, 5, 6), (3, 0, 16)
    weights = tuple(quantize(torch.randn(count, num_columns)) for count in rows)
    parts = tuple(
        LoraPart(
            row_start=start,
            row_stop=start + count,
            lora_A=torch.randn(rank, num_columns),
            lora_B=torch.randn(count, rank),
            scaling=0.3,
        )
        for start, count, rank in zip((0, 7, 12), rows, ranks, strict=True)
        if rank
    )
    stored = dense(Linear(weight=weights)).to(dtype)
    weight = Linear(weight=weights if is_nf4 else stored, lora=LoraDelta(parts=parts))
    room = torch.full((20, num_columns + 40), 7.0, dtype=dtype)
    products.write_matrix(weight, room[1:-1, : num_columns + 32], with_B=True)
    expected = torch.zeros(18, 32, dtype=dtype)
    expected[0:7, 0:3] = (parts[0].lora_B * 0.3).to(dtype)
    expected[12:18, 3:19] = (parts[1].lora_B * 0.3).to(dtype)
    assert torch.equal(room[1:-1, :num_columns], stored)
    assert torch.equal(room[1:-1, num_columns : num_columns + 32], expected)
    assert (room[:, num_columns + 32 :] == 7).all()
    assert (room[[0, -1]] == 7).all()

    stacked_A = torch.randn(16, num_columns).to(dtype)
    room = torch.full((36, num_columns), 7.0, dtype=dtype)
    products.write_matrix(weight, room[1:-1], below=stacked_A)
    assert torch.equal(room[1:-1], torch.cat([stored, stacked_A]))
    assert (room[[0, -1]] == 7).all()
