"""The kernel against its reference and bitsandbytes, bit by bit; adapters against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fam_engine.kernels.nf4_dequantize import LoraFactors, NF4Weight
from fam_engine.kernels.nf4_dequantize import nf4_dequantize as reference
from fam_engine.kernels.nf4_dequantize_triton import nf4_dequantize
from fam_engine.model.nf4 import bitsandbytes_functional, quantize
from tests.kernels.compiling import printed_by_compiled
from tests.kernels.on import DEVICE, DTYPES, rounding
from tests.kernels.weights import from_state

# Rows of one block, of an odd number, of two, of four, of more than a program has; rows odd and more than a program's.
SHAPES = [(1, 64), (3, 192), (129, 64), (65, 128), (5, 256), (2, 16384)]


def dense(
    weight: NF4Weight,
    dtype: torch.dtype,
    lora: LoraFactors | None = None,
    *,
    by: Callable[..., torch.Tensor] = nf4_dequantize,
) -> torch.Tensor:
    """Give one matrix, with its adapter merged if one is given."""
    out = torch.empty(weight.shape, dtype=dtype, device=DEVICE)
    return by([weight], out=out, loras=[lora] if lora else ())


def random_weight(shape: tuple[int, int]) -> NF4Weight:
    torch.manual_seed(0)
    # Rows of very different size make blocks of different absmax.
    return quantize(torch.randn(shape) * torch.logspace(-3, 1, shape[0])[:, None]).to(DEVICE)


def random_lora(shape: tuple[int, int], rank: int) -> LoraFactors:
    torch.manual_seed(1)
    lora_A, lora_B = torch.randn(rank, shape[1]), torch.randn(shape[0], rank)
    return LoraFactors(lora_A=lora_A.to(DEVICE), lora_B=lora_B.to(DEVICE), scaling=0.3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random_weight(shape)
    assert torch.equal(dense(weight, dtype), dense(weight, dtype, by=reference))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_byte_with_every_scale_equals_bitsandbytes(dtype: torch.dtype) -> None:
    # Of 2048 blocks eight neighbours share an absmax index and hold all 256 bytes between them. Second scales change
    # every 256 blocks.
    shape = (2048, 64)
    source = torch.randn(shape) * torch.logspace(-2, 1, 2048)[:, None]
    packed, state = bitsandbytes_functional().quantize_4bit(
        source, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    packed = torch.arange(256, dtype=torch.uint8).repeat(256)
    state.absmax = torch.arange(256, dtype=torch.uint8).repeat_interleave(8)
    state.dtype = dtype
    assert state.state2.absmax.unique().numel() == 8
    expected = bitsandbytes_functional().dequantize_4bit(packed.view(-1, 1), state)
    weight = from_state(packed, state, shape).to(DEVICE)
    got = dense(weight, dtype)
    assert torch.equal(got.cpu(), expected.view(shape))
    assert torch.equal(got, dense(weight, dtype, by=reference))


@pytest.mark.parametrize("stride", [192, 193, 208])
@pytest.mark.parametrize("rank", [0, 3])
def test_rows_may_be_far_apart(stride: int, rank: int) -> None:
    shape = (131, 192)
    weight, lora = random_weight(shape), random_lora(shape, rank) if rank else None
    room = torch.full((133, stride), 7.0, device=DEVICE)
    out = room[1:132, :192]
    got = nf4_dequantize([weight], out=out, loras=[lora] if lora else ())
    assert got is out
    assert torch.equal(out, dense(weight, torch.float32, lora))
    assert (room[:, 192:] == 7).all()
    assert (room[[0, 132]] == 7).all()


def test_places_beyond_32_bits(tmp_path: Path) -> None:
    # Row 128 begins 2^31 values after row 0.
    num_rows, stride = 129, 2**24
    weight = random_weight((num_rows, 64))
    if DEVICE.type == "cuda":
        room = torch.empty(num_rows * stride, dtype=torch.float16, device=DEVICE)
    else:  # a file with holes: what is never touched takes no memory
        file, size = str(tmp_path / "room"), num_rows * stride
        room = torch.from_file(file, shared=True, size=size, dtype=torch.float16)
    room = room.view(num_rows, stride)
    out = room[:, :64]
    nf4_dequantize([weight], out=out)
    assert torch.equal(out, dense(weight, torch.float16))


@pytest.mark.parametrize("rank", [1, 16, 17, 40])
@pytest.mark.parametrize("shape", [(3, 64), (65, 128), (70, 192)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adapter_is_rounded_once(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    weight, lora = random_weight(shape), random_lora(shape, rank)
    got = dense(weight, dtype, lora)
    exact = dense(weight, torch.float64, lora, by=reference)
    # Of the sum one rounding, of its parts those of float32, or of two TF32 numbers (22 bits).
    size = lora.lora_B.double().abs() @ lora.lora_A.double().abs() * lora.scaling
    allowed = rounding(dtype) * exact.abs() + 2**-19 * size
    assert ((got.double() - exact).abs() <= allowed).all()


def test_nothing_beyond_the_factors_is_used() -> None:
    shape, rank = (5, 192), 17
    weight, lora = random_weight(shape), random_lora(shape, rank)
    poisoned = []
    for factor in (lora.lora_A, lora.lora_B):
        room = torch.full((factor.numel() + 16 * 192,), torch.nan, device=DEVICE)
        room[: factor.numel()] = factor.view(-1)
        poisoned.append(room[: factor.numel()].view(factor.shape))
    beside = LoraFactors(lora_A=poisoned[0], lora_B=poisoned[1], scaling=lora.scaling)
    assert torch.equal(dense(weight, torch.float32, beside), dense(weight, torch.float32, lora))


def test_adapter_of_lower_precision_is_brought_to_float32() -> None:
    weight, lora = random_weight((5, 128)), random_lora((5, 128), 4)
    low = LoraFactors(lora_A=lora.lora_A.half(), lora_B=lora.lora_B.half(), scaling=lora.scaling)
    high = LoraFactors(lora_A=low.lora_A.float(), lora_B=low.lora_B.float(), scaling=low.scaling)
    assert torch.equal(dense(weight, torch.float32, low), dense(weight, torch.float32, high))


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    # 256 blocks share a second scale: rows are taken from the front.
    shape = (130, 128)
    weight, lora = random_weight(shape), random_lora(shape, 8)
    some = replace(lora, lora_B=lora.lora_B[:67])
    first = replace(
        weight,
        packed=weight.packed[: 67 * 64],
        absmax=weight.absmax[: 67 * 2],
        shape=(67, 128),
    )
    few, all_rows = dense(first, torch.float32, some), dense(weight, torch.float32, lora)
    assert torch.equal(few, all_rows[:67])


# Rows of the sources, K and ranks of their adapters, 0 for none: odd rows and more than a program's, of one block, of
# three and of more than a program has.
MERGED = [
    ((65, 7, 1), 128, (16, 8, 1)),
    ((131, 3), 64, (0, 33)),
    ((5, 130), 192, (16, 0)),
    ((2, 1), 16384, (1, 33)),
    ((9, 260), 256, (0, 0)),
    ((129,), 128, (33,)),
]


def merged(
    features: tuple[int, ...], num_columns: int, ranks: tuple[int, ...]
) -> tuple[list[NF4Weight], list[LoraFactors | None]]:
    weights = [random_weight((rows, num_columns)) for rows in features]
    loras = [
        random_lora(weight.shape, rank) if rank else None
        for weight, rank in zip(weights, ranks, strict=True)
    ]
    return weights, loras


def among_sevens(num_rows: int, num_columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Give memory for a matrix, and the whole of which it is the middle."""
    room = torch.full((num_rows + 2, num_columns + 24), 7.0, dtype=dtype, device=DEVICE)
    return room[1:-1, 8:-16], room


def bits(x: torch.Tensor) -> torch.Tensor:
    """Tell zeros apart by their sign."""
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize(("features", "num_columns", "ranks"), MERGED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", ["alone", "beside", "below"])
def test_all_sources_and_what_goes_with_them_equal_the_reference(
    features: tuple[int, ...],
    num_columns: int,
    ranks: tuple[int, ...],
    dtype: torch.dtype,
    where: str,
) -> None:
    weights, loras = merged(features, num_columns, ranks)
    num_ranks = -(-sum(ranks) // 16) * 16
    options: dict[str, object] = {}
    num_rows, width = sum(features), num_columns
    if where == "beside":
        options["beside"] = loras
        width += num_ranks
    if where == "below":
        options["below"] = torch.randn(num_ranks + 3, num_columns, device=DEVICE).to(dtype)
        num_rows += num_ranks + 3
    (got, room), (expected, room_of_reference) = (
        among_sevens(num_rows, width, dtype) for _ in range(2)
    )
    nf4_dequantize(weights, out=got, **options)
    reference(weights, out=expected, **options)
    assert torch.equal(bits(got), bits(expected))
    assert torch.equal(room, room_of_reference), "nothing is written elsewhere"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaling", [0.3, -2.0])
def test_scaled_B_is_block_diagonal(dtype: torch.dtype, scaling: float) -> None:
    weights, loras = merged((65, 7, 130), 64, (16, 0, 9))
    loras = [lora and replace(lora, scaling=scaling) for lora in loras]
    out, _ = among_sevens(202, 64 + 32, dtype)
    nf4_dequantize(weights, out=out, beside=loras)
    expected = torch.zeros(202, 32, device=DEVICE)
    for lora, rows, columns in (
        (loras[0], slice(65), slice(16)),
        (loras[2], slice(72, 202), slice(16, 25)),
    ):
        assert lora is not None
        expected[rows, columns] = lora.lora_B * scaling
    assert torch.equal(bits(out[:, 64:]), bits(expected.to(dtype)))
    first = 0
    for weight in weights:
        assert torch.equal(out[first : first + weight.shape[0], :64], dense(weight, dtype))
        first += weight.shape[0]


@pytest.mark.parametrize(
    ("features", "num_columns", "ranks"), [case for case in MERGED if any(case[2])]
)
def test_merged_sources_have_the_bits_of_each_alone(
    features: tuple[int, ...], num_columns: int, ranks: tuple[int, ...]
) -> None:
    weights, loras = merged(features, num_columns, ranks)
    # Codes of a block with a scale of zero are negative zeros: what is without an adapter keeps them.
    for weight in weights:
        weight.offset.zero_()
        weight.code2[weight.absmax[0].long()] = 0
    out, room = among_sevens(sum(features), num_columns, torch.float32)
    nf4_dequantize(weights, out=out, loras=loras)
    first = 0
    for weight, lora in zip(weights, loras, strict=True):
        rows = out[first : first + weight.shape[0]]
        assert torch.equal(bits(rows), bits(dense(weight, torch.float32, lora)))
        first += weight.shape[0]
    out.fill_(7)
    assert (room == 7).all(), "nothing is written elsewhere"


def test_refuses_rows_of_broken_blocks_and_float64() -> None:
    with pytest.raises(ValueError, match="found K = 96"):
        dense(random_weight((2, 96)), torch.float32)
    with pytest.raises(ValueError, match=r"asked for torch\.float64"):
        dense(random_weight((2, 64)), torch.float64)


PROGRAM = """
import re
import tempfile
import triton
from triton.backends.compiler import GPUTarget
from fam_engine.kernels import nf4_dequantize_triton
from tests.kernels import offline

NAMES = {
    "4096x4096",
    "4096+1024+1024x4096",
    "4096+1024+1024x4096 48 beside",
    "4096+1024+1024x4096 48 below",
}
for variant in nf4_dequantize_triton.variants(80):
    if variant.name.partition(" bf16 ")[2] in NAMES:
        target = GPUTarget("cuda", 80, 32)
        made = triton.compile(offline._source(variant), target, options=variant.launch.options).asm
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made["cubin"])
            file.flush()
            code = offline._cuobjdump("-sass", file.name)
        assert "FMUL" in code and "FADD" in code and "FFMA" not in code, code
        assert "LDG.E.128" in code and "STG.E.128" in code, code
        assert "STG.E " not in code and "STG.E.U16" not in code, code
        layout = re.findall("tt.store.*(#blocked[0-9]*)>", made["ttgir"])[-1]
        layout = re.search(layout + " = (.*)", made["ttgir"])[1]
        assert "sizePerThread = [1, 8], threadsPerWarp = [4, 8]" in layout, layout
        print("seen")
"""


def test_compiled_without_fused_multiply_adds_and_with_wide_transfers() -> None:
    # Eight threads store a block of 64 side by side, 16 bytes each; also with pointers chosen among sources.
    assert printed_by_compiled(PROGRAM) == "seen\n" * 4
