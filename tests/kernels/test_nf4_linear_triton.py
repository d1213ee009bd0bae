from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fam_engine.kernels import nf4_linear_triton as kernel
from fam_engine.kernels.nf4_dequantize import LoraFactors, NF4Weight, nf4_dequantize
from fam_engine.kernels.nf4_linear import nf4_linear as reference
from fam_engine.kernels.nf4_linear_triton import nf4_linear
from tests.kernels.on import DEVICE, DTYPES, rounding
from tests.kernels.ptx import run_ptx

# One block, three of them, three splits of which the last one is shorter, and three where scales are read four at a
# time. (On a GPU each shape is compiled anew.)
COLUMNS = [64, 192, 640, 768]
# Few and full tiles of 8, 16, 32 and 64.
ROWS = [1, 8, 9, 16, 17, 33, 64]
# A value of the table in 16 bits is at most so far from the true one, in parts of it.
CODE_ERROR = {torch.bfloat16: 1.93e-3, torch.float16: 2.86e-4, torch.float32: 1e-7}


def random_nf4(num_features: int, num_columns: int) -> NF4Weight:
    """Give the tensors of a matrix, any bytes."""
    num_blocks = num_features * num_columns // 64
    packed = torch.randint(256, (num_blocks * 32,), dtype=torch.uint8)
    absmax = torch.randint(256, (num_blocks,), dtype=torch.uint8)
    absmax2 = torch.rand(-(-num_blocks // 256)) * 0.1
    code2 = torch.rand(256).sort().values * 2 - 1
    return NF4Weight(
        packed=packed,
        absmax=absmax,
        absmax2=absmax2,
        offset=torch.tensor(0.2),
        code2=code2,
        shape=(num_features, num_columns),
    ).to(DEVICE)


def random_lora(num_features: int, num_columns: int, rank: int) -> LoraFactors:
    lora_A = torch.randn(rank, num_columns, device=DEVICE) / rank**0.5
    lora_B = torch.randn(num_features, rank, device=DEVICE)
    return LoraFactors(lora_A=lora_A, lora_B=lora_B, scaling=0.7)


def run(x: torch.Tensor, *sources: NF4Weight, **options: object) -> torch.Tensor:
    num_features = sum(source.shape[0] for source in sources)
    out = torch.empty(x.shape[0], num_features, dtype=x.dtype, device=DEVICE)
    nf4_linear(x, sources, out=out, **options)
    return out


def dense(source: NF4Weight) -> torch.Tensor:
    """Give W in float32."""
    return nf4_dequantize([source], out=torch.empty(source.shape, device=DEVICE))


def assert_near_truth(
    got: torch.Tensor,
    x: torch.Tensor,
    source: NF4Weight,
    *,
    bias: torch.Tensor | None = None,
    lora: LoraFactors | None = None,
) -> None:
    rows, weight = x.double(), dense(source).double()
    truth, size = rows @ weight.t(), rows.abs() @ weight.t().abs()
    # Rounded values of the table: their errors add up as those of random signs do.
    of_codes = CODE_ERROR[x.dtype] * (rows.square() @ weight.t().square()).sqrt()
    if lora is not None:
        A, B = lora.lora_A.double().t(), lora.lora_B.double().t()
        truth += lora.scaling * (rows @ A @ B)
        size += lora.scaling * (rows.abs() @ A.abs() @ B.abs())
    if bias is not None:
        truth += bias
    error = (got.double() - truth).abs()
    # 2e-6: some dozens of roundings of sums in float32.
    allowed = rounding(x.dtype) * truth.abs() + 2e-6 * size + 3 * of_codes + 1e-7
    assert (error <= allowed).all()


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64_rounded_once(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(num_rows)
    for num_features, num_columns in zip([1, 37, 33, 70], COLUMNS, strict=True):
        weight = random_nf4(num_features, num_columns)
        x = torch.randn(num_rows, num_columns).to(DEVICE, dtype)
        assert_near_truth(run(x, weight), x, weight)


@pytest.mark.parametrize("num_columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_is_its_code_rounded_once_and_its_scale(
    num_columns: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    # Rows beyond a tile of 32, and more than 256 blocks.
    weight = random_nf4(33, num_columns)
    truth = dense(weight)
    for rows in torch.eye(num_columns, dtype=dtype, device=DEVICE).split(64):
        wanted = truth[:, rows.argmax(dim=1)].t()
        error = (run(rows, weight).float() - wanted).abs()
        assert (error <= (CODE_ERROR[dtype] + rounding(dtype)) * 1.01 * wanted.abs()).all()


@pytest.mark.parametrize("rank", [1, 8, 16, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adapter_and_bias_are_added_before_the_rounding(rank: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rank)
    for num_rows, num_features, num_columns in [(1, 67, 512), (17, 40, 192)]:
        weight = random_nf4(num_features, num_columns)
        lora = random_lora(num_features, num_columns, rank)
        x = torch.randn(num_rows, num_columns).to(DEVICE, dtype)
        bias = torch.randn(num_features).to(DEVICE, dtype) * 10
        got = run(x, weight, bias=bias, loras=[lora])
        assert_near_truth(got, x, weight, bias=bias, lora=lora)
        got = run(x, weight, loras=[lora])
        assert_near_truth(got, x, weight, lora=lora)


@pytest.mark.parametrize("rank", [0, 4])
def test_adds_to_what_is_there_before_the_rounding(rank: int) -> None:
    torch.manual_seed(0)
    weight = random_nf4(40, 192)
    loras = [random_lora(40, 192, rank)] if rank else []
    x, before = torch.randn(9, 192, device=DEVICE), torch.randn(9, 40, device=DEVICE)
    out = before.clone()
    nf4_linear(x, [weight], out=out, loras=loras, adds=True)
    assert torch.equal(out, run(x, weight, loras=loras) + before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_a_row_depend_on_that_row_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, lora = random_nf4(33, 768), random_lora(33, 768, 16)
    x = torch.randn(64, 768).to(DEVICE, dtype)
    bias = torch.randn(33).to(DEVICE, dtype)
    together = run(x, weight, bias=bias, loras=[lora])
    for rows in (slice(0, 1), slice(5, 8), slice(30, 46), slice(20, 53), slice(63, 64)):
        assert torch.equal(run(x[rows], weight, bias=bias, loras=[lora]), together[rows])


@pytest.mark.parametrize("num_columns", [192, 512])
@pytest.mark.parametrize("num_rows", [3, 18])
def test_reads_and_writes_its_own_places_only(num_rows: int, num_columns: int) -> None:
    torch.manual_seed(0)
    weight, lora = random_nf4(37, num_columns), random_lora(37, num_columns, 5)
    x = torch.randn(num_rows, num_columns, device=DEVICE)
    bias = torch.randn(37, device=DEVICE)
    expected = run(x, weight, bias=bias, loras=[lora])

    def among_nan(part: torch.Tensor) -> torch.Tensor:
        """The same values with others behind every row and behind the last."""
        sizes = [size + 100 for size in part.shape]
        if part.dtype == torch.uint8:
            room = torch.full(sizes, 255, dtype=torch.uint8, device=DEVICE)
        else:
            room = torch.full(sizes, torch.nan, device=DEVICE)
        inner = room[tuple(slice(size) for size in part.shape)]
        return inner.copy_(part)

    names = ("packed", "absmax", "absmax2", "code2")
    parts = {name: among_nan(getattr(weight, name)) for name in names}
    out = among_nan(torch.zeros(num_rows, 37, device=DEVICE))
    room_of_out = out.as_strided((num_rows + 100, 137), out.stride())
    nf4_linear(
        among_nan(x),
        [replace(weight, **parts)],
        out=out,
        bias=among_nan(bias),
        loras=[lora],
    )
    assert torch.equal(out, expected)
    assert room_of_out[:, 37:].isnan().all()
    assert room_of_out[num_rows:].isnan().all()


@pytest.mark.parametrize(
    ("num_features", "ranks"),
    [
        ((40, 24), (0, 0)),
        ((40, 24), (20, 4)),
        ((33, 1, 70), (4, 0, 0)),
        ((33, 1, 70), (0, 4, 17)),
        ((33, 1, 70), (16, 0, 33)),
    ],
)
def test_sources_one_below_the_other(num_features: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    sources = [random_nf4(count, 512) for count in num_features]
    loras = [
        replace(random_lora(count, 512, rank), scaling=0.7 / rank) if rank else None
        for count, rank in zip(num_features, ranks, strict=True)
    ]
    x, bias = torch.randn(17, 512, device=DEVICE), torch.randn(sum(num_features), device=DEVICE)
    got = run(x, *sources, bias=bias, loras=loras)
    parts, biases = got.split(num_features, dim=1), bias.split(num_features)
    for source, part, some_bias, lora in zip(sources, parts, biases, loras, strict=True):
        assert_near_truth(part, x, source, bias=some_bias, lora=lora)


@pytest.mark.parametrize("function", [reference, nf4_linear])
def test_refuses_what_it_does_not_take(function: object) -> None:
    weight = random_nf4(64, 96)
    with pytest.raises(ValueError, match="a multiple of 64 input features, found 96"):
        function(torch.zeros(1, 96), [weight], out=torch.zeros(1, 64))
    with pytest.raises(ValueError, match="at most 64 rows, found 65"):
        function(torch.zeros(65, 128), [weight], out=torch.zeros(65, 48))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_instructions_of_a_look_up_give_the_table_s_values(dtype: torch.dtype) -> None:
    """The interpreter runs none of them."""
    table = kernel._table(dtype, torch.device("cpu")).numpy().view(np.uint32)
    values, words = table[:16], np.random.default_rng(0).integers(2**32, size=4096, dtype=np.uint32)
    for half, signs in enumerate((kernel._LOW_SIGNS, kernel._HIGH_SIGNS)):
        given = {"$4": words, "$5": np.uint32(16 * half), "$6": np.uint32(signs.value)}
        given |= {f"${7 + place}": table[16 + place] for place in range(8)}
        found = run_ptx(kernel._LOOK_UP.value, given)
        for place, shift in enumerate((4, 0, 12, 8)):
            index = words >> np.uint32(16 * half + shift) & np.uint32(15)
            assert np.array_equal(found[f"${place}"], values[index] & 0xFFFF)
