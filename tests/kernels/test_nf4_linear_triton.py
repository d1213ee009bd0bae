from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.nf4_dequantize import LoraFactors, nf4_dequantize
from fam_engine.kernels.nf4_linear import nf4_linear as reference
from fam_engine.kernels.nf4_linear_triton import nf4_linear
from tests.kernels.on import DEVICE, DTYPES, rounding

# One block, one step, a step and a half, two splits of which the second is half a step, three splits.
COLUMNS = [64, 128, 192, 320, 640]
# One; few and full; one more than a tile of 16, of 32; all.
ROWS = [1, 2, 3, 15, 16, 17, 33, 64]


def random_nf4(num_features: int, num_columns: int) -> tuple[torch.Tensor, ...]:
    """Give the tensors of a matrix as `nf4_dequantize` takes them, any bytes."""
    num_blocks = num_features * num_columns // 64
    packed = torch.randint(256, (num_blocks * 32,), dtype=torch.uint8)
    absmax = torch.randint(256, (num_blocks,), dtype=torch.uint8)
    absmax2 = torch.rand(-(-num_blocks // 256)) * 0.1
    code2 = torch.rand(256).sort().values * 2 - 1
    return tuple(part.to(DEVICE) for part in (packed, absmax, absmax2, torch.tensor(0.2), code2))


def random_lora(num_features: int, num_columns: int, rank: int) -> LoraFactors:
    lora_A = torch.randn(rank, num_columns, device=DEVICE) / rank**0.5
    lora_B = torch.randn(num_features, rank, device=DEVICE)
    return LoraFactors(lora_A=lora_A, lora_B=lora_B, scaling=0.7)


def run(
    x: torch.Tensor, weight: tuple[torch.Tensor, ...], num_features: int, **options: object
) -> torch.Tensor:
    out = torch.empty(x.shape[0], num_features, dtype=x.dtype, device=DEVICE)
    nf4_linear(x, *weight, out=out, **options)
    return out


def assert_near_truth(
    got: torch.Tensor,
    x: torch.Tensor,
    weight: tuple[torch.Tensor, ...],
    *,
    bias: torch.Tensor | None = None,
    lora: LoraFactors | None = None,
) -> None:
    shape = (got.shape[1], x.shape[1])
    dense = nf4_dequantize(*weight, shape=shape, dtype=x.dtype).double()
    truth, size = x.double() @ dense.t(), x.double().abs() @ dense.t().abs()
    if lora is not None:
        A, B = lora.lora_A.double().t(), lora.lora_B.double().t()
        truth += lora.scaling * (x.double() @ A @ B)
        size += lora.scaling * (x.double().abs() @ A.abs() @ B.abs())
    if bias is not None:
        truth += bias
    error = (got.double() - truth).abs()
    # 2e-6: some dozens of roundings of sums in float32.
    assert (error <= rounding(x.dtype) * truth.abs() + 2e-6 * size + 1e-7).all()


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64_rounded_once(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(num_rows)
    for num_features, num_columns in zip([1, 37, 64, 129, 65], COLUMNS, strict=True):
        weight = random_nf4(num_features, num_columns)
        x = torch.randn(num_rows, num_columns).to(DEVICE, dtype)
        assert_near_truth(run(x, weight, num_features), x, weight)


@pytest.mark.parametrize("num_columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_have_the_bits_of_the_dense_matrix(num_columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # Blocks of 64 rows and more than 256 blocks.
    weight = random_nf4(70, num_columns)
    dense = nf4_dequantize(*weight, shape=(70, num_columns), dtype=dtype)
    for rows in torch.eye(num_columns, dtype=dtype, device=DEVICE).split(64):
        columns = rows.argmax(dim=1)
        assert torch.equal(run(rows, weight, 70), dense[:, columns].t())


@pytest.mark.parametrize("rank", [1, 8, 16, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adapter_and_bias_are_added_before_the_rounding(rank: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rank)
    for num_rows, num_features, num_columns in [(1, 67, 320), (17, 40, 192)]:
        weight = random_nf4(num_features, num_columns)
        lora = random_lora(num_features, num_columns, rank)
        x = torch.randn(num_rows, num_columns).to(DEVICE, dtype)
        bias = torch.randn(num_features).to(DEVICE, dtype) * 10
        got = run(x, weight, num_features, bias=bias, lora=lora)
        assert_near_truth(got, x, weight, bias=bias, lora=lora)
        got = run(x, weight, num_features, lora=lora)
        assert_near_truth(got, x, weight, lora=lora)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_a_row_depend_on_that_row_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, lora = random_nf4(130, 576), random_lora(130, 576, 16)
    x = torch.randn(64, 576).to(DEVICE, dtype)
    bias = torch.randn(130).to(DEVICE, dtype)
    together = run(x, weight, 130, bias=bias, lora=lora)
    for rows in (slice(0, 1), slice(5, 8), slice(30, 46), slice(20, 53), slice(63, 64)):
        assert torch.equal(run(x[rows], weight, 130, bias=bias, lora=lora), together[rows])


@pytest.mark.parametrize("num_columns", [192, 320])
@pytest.mark.parametrize("num_rows", [3, 18])
def test_reads_and_writes_its_own_places_only(num_rows: int, num_columns: int) -> None:
    torch.manual_seed(0)
    weight, lora = random_nf4(37, num_columns), random_lora(37, num_columns, 5)
    x = torch.randn(num_rows, num_columns, device=DEVICE)
    bias = torch.randn(37, device=DEVICE)
    expected = run(x, weight, 37, bias=bias, lora=lora)

    def among_nan(part: torch.Tensor) -> torch.Tensor:
        """The same values with others behind every row and behind the last."""
        sizes = [size + 100 for size in part.shape]
        if part.dtype == torch.uint8:
            room = torch.full(sizes, 255, dtype=torch.uint8, device=DEVICE)
        else:
            room = torch.full(sizes, torch.nan, device=DEVICE)
        inner = room[tuple(slice(size) for size in part.shape)]
        return inner.copy_(part)

    out = among_nan(torch.zeros(num_rows, 37, device=DEVICE))
    room_of_out = out.as_strided((num_rows + 100, 137), out.stride())
    nf4_linear(
        among_nan(x),
        *(among_nan(part) if part.dim() else part for part in weight),
        out=out,
        bias=among_nan(bias),
        lora=lora,
    )
    assert torch.equal(out, expected)
    assert room_of_out[:, 37:].isnan().all()
    assert room_of_out[num_rows:].isnan().all()


def test_writes_columns_of_a_merged_output() -> None:
    torch.manual_seed(0)
    parts = [random_nf4(num_features, 128) for num_features in (40, 24)]
    x = torch.randn(5, 128, device=DEVICE)
    merged = torch.empty(5, 64, device=DEVICE)
    for weight, out in zip(parts, merged.split([40, 24], dim=1), strict=True):
        nf4_linear(x, *weight, out=out)
    for weight, out in zip(parts, merged.split([40, 24], dim=1), strict=True):
        assert_near_truth(out, x, weight)


@pytest.mark.parametrize("function", [reference, nf4_linear])
def test_refuses_what_it_does_not_take(function: object) -> None:
    weight = random_nf4(64, 96)
    with pytest.raises(ValueError, match="a multiple of 64 input features, found 96"):
        function(torch.zeros(1, 96), *weight, out=torch.zeros(1, 64))
    with pytest.raises(ValueError, match="at most 64 rows, found 65"):
        function(torch.zeros(65, 128), *weight, out=torch.zeros(65, 48))
