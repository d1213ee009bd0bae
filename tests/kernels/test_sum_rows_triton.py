"""Sums of rows in a fixed order: reference and Triton's kernel against sums written out, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fam_engine.kernels import sum_rows as reference
from fam_engine.kernels import sum_rows_triton as kernel
from tests.kernels.on import DEVICE, DTYPES

SumRows = Callable[..., None]
BOTH = [reference.sum_rows, kernel.sum_rows]


def ordered(taken_from: list[int], num_places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give places and starts."""
    places = np.argsort(np.array(taken_from), kind="stable").astype(np.int32)
    counts = np.bincount(taken_from, minlength=num_places)
    starts = np.concatenate(([0], counts.cumsum())).astype(np.int32)
    return torch.from_numpy(places).to(DEVICE), torch.from_numpy(starts).to(DEVICE)


# Places of none, one, two and five rows, the first and the last among them; and no row at all.
@pytest.mark.parametrize("taken_from", [[3, 0, 3, 5, 3, 0, 3, 3], [], [2]])
@pytest.mark.parametrize("width", [1, 40, 1030])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sum_rows", BOTH)
def test_adds_in_order_and_rounds_once(
    sum_rows: SumRows, taken_from: list[int], width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randn(len(taken_from), width).to(DEVICE, dtype)
    expected = torch.zeros(6, width, device=DEVICE)
    for row, place in zip(x, taken_from, strict=True):
        expected[place] += row.float()
    out = torch.full((6, width), torch.nan, dtype=dtype, device=DEVICE)
    sum_rows(x, *ordered(taken_from, 6), out_TW=out)
    assert torch.equal(out, expected.to(dtype))


@pytest.mark.parametrize("sum_rows", BOTH)
def test_rows_far_apart_and_another_dtype(sum_rows: SumRows) -> None:
    torch.manual_seed(0)
    taken_from = [1, 1, 0]
    room = torch.full((3, 50), torch.nan, device=DEVICE, dtype=torch.float16)
    room[:, 5:25] = torch.randn(3, 20)
    out = torch.full((2, 30), 7.0, device=DEVICE)
    sum_rows(room[:, 5:25], *ordered(taken_from, 2), out_TW=out[:, 4:24])
    x = room[:, 5:25].float()
    assert torch.equal(out[:, 4:24], torch.stack((x[2], x[0] + x[1])))
    assert (out[:, :4] == 7).all()
    assert (out[:, 24:] == 7).all()


def test_the_reference_takes_float64() -> None:
    x = torch.tensor([[1.0], [2.0**-40]], dtype=torch.float64)
    out = torch.empty(1, 1, dtype=torch.float64)
    reference.sum_rows(x, torch.tensor([0, 1]).int(), torch.tensor([0, 2]).int(), out_TW=out)
    assert out.item() == 1 + 2.0**-40
