"""The kernel against its reference and bitsandbytes, bit by bit; adapters against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fam_engine.kernels import nf4_dequantize as reference
from fam_engine.kernels.nf4_dequantize import LoraFactors
from fam_engine.kernels.nf4_dequantize_triton import nf4_dequantize
from fam_engine.model.nf4 import NF4Weight, bitsandbytes_functional, quantize
from tests.kernels.compiling import printed_by_compiled
from tests.kernels.on import DEVICE, DTYPES, rounding

# Rows of one block, of an odd number, of two, of four, of more than a program has; rows odd and more than a program's.
SHAPES = [(1, 64), (3, 192), (129, 64), (65, 128), (5, 256), (2, 16384)]


def parts(weight: NF4Weight) -> tuple[torch.Tensor, ...]:
    weight = weight.to(DEVICE)
    return (weight.packed, weight.absmax, weight.absmax2, weight.offset, weight.code2)


def random_weight(shape: tuple[int, int]) -> NF4Weight:
    torch.manual_seed(0)
    # Rows of very different size make blocks of different absmax.
    return quantize(torch.randn(shape) * torch.logspace(-3, 1, shape[0])[:, None])


def random_lora(shape: tuple[int, int], rank: int) -> LoraFactors:
    torch.manual_seed(1)
    lora_A, lora_B = torch.randn(rank, shape[1]), torch.randn(shape[0], rank)
    return LoraFactors(lora_A=lora_A.to(DEVICE), lora_B=lora_B.to(DEVICE), scaling=0.3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random_weight(shape)
    got = nf4_dequantize(*parts(weight), shape=shape, dtype=dtype)
    expected = reference.nf4_dequantize(*parts(weight), shape=shape, dtype=dtype)
    assert torch.equal(got, expected)


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
    weight = NF4Weight(
        packed=packed,
        absmax=state.absmax,
        absmax2=state.state2.absmax,
        offset=state.offset,
        code2=state.state2.code,
        shape=shape,
    )
    got = nf4_dequantize(*parts(weight), shape=shape, dtype=dtype)
    assert torch.equal(got.cpu(), expected.view(shape))
    assert torch.equal(got, reference.nf4_dequantize(*parts(weight), shape=shape, dtype=dtype))


@pytest.mark.parametrize("stride", [192, 193, 208])
@pytest.mark.parametrize("rank", [0, 3])
def test_rows_may_be_far_apart(stride: int, rank: int) -> None:
    shape = (131, 192)
    weight, lora = random_weight(shape), random_lora(shape, rank) if rank else None
    room = torch.full((133, stride), 7.0, device=DEVICE)
    out = room[1:132, :192]
    got = nf4_dequantize(*parts(weight), shape=shape, dtype=torch.float32, out=out, lora=lora)
    assert got is out
    close = nf4_dequantize(*parts(weight), shape=shape, dtype=torch.float32, lora=lora)
    assert torch.equal(out, close)
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
    nf4_dequantize(*parts(weight), shape=weight.shape, dtype=torch.float16, out=out)
    close = nf4_dequantize(*parts(weight), shape=weight.shape, dtype=torch.float16)
    assert torch.equal(out, close)


@pytest.mark.parametrize("rank", [1, 16, 17, 40])
@pytest.mark.parametrize("shape", [(3, 64), (65, 128), (70, 192)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adapter_is_rounded_once(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    weight, lora = random_weight(shape), random_lora(shape, rank)
    got = nf4_dequantize(*parts(weight), shape=shape, dtype=dtype, lora=lora)
    exact = reference.nf4_dequantize(*parts(weight), shape=shape, dtype=torch.float64, lora=lora)
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
    got, expected = (
        nf4_dequantize(*parts(weight), shape=shape, dtype=torch.float32, lora=factors)
        for factors in (beside, lora)
    )
    assert torch.equal(got, expected)


def test_adapter_of_lower_precision_is_brought_to_float32() -> None:
    weight, lora = random_weight((5, 128)), random_lora((5, 128), 4)
    low = LoraFactors(lora_A=lora.lora_A.half(), lora_B=lora.lora_B.half(), scaling=lora.scaling)
    high = LoraFactors(lora_A=low.lora_A.float(), lora_B=low.lora_B.float(), scaling=low.scaling)
    got, expected = (
        nf4_dequantize(*parts(weight), shape=(5, 128), dtype=torch.float32, lora=factors)
        for factors in (low, high)
    )
    assert torch.equal(got, expected)


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    # 256 blocks share a second scale: rows are taken from the front.
    shape = (130, 128)
    weight, lora = random_weight(shape), random_lora(shape, 8)
    packed, absmax, *rest = parts(weight)
    some = LoraFactors(lora_A=lora.lora_A, lora_B=lora.lora_B[:67], scaling=lora.scaling)
    first = (packed[: 67 * 64], absmax[: 67 * 2], *rest)
    few = nf4_dequantize(*first, shape=(67, 128), dtype=torch.float32, lora=some)
    all_rows = nf4_dequantize(*parts(weight), shape=shape, dtype=torch.float32, lora=lora)
    assert torch.equal(few, all_rows[:67])


def test_refuses_rows_of_broken_blocks_and_float64() -> None:
    with pytest.raises(ValueError, match="found K = 96"):
        nf4_dequantize(*parts(random_weight((2, 96))), shape=(2, 96), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"asked for torch\.float64"):
        nf4_dequantize(*parts(random_weight((2, 64))), shape=(2, 64), dtype=torch.float64)


PROGRAM = """
import re
import tempfile
import triton
from triton.backends.compiler import GPUTarget
from fam_engine.kernels import nf4_dequantize_triton
from tests.kernels import offline

for variant in nf4_dequantize_triton.variants(80):
    if variant.name == "nf4_dequantize bf16 4096":
        target = GPUTarget("cuda", 80, 32)
        made = triton.compile(offline._source(variant), target, options=variant.launch.options).asm
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made["cubin"])
            file.flush()
            code = offline._cuobjdump("-sass", file.name)
        assert "FMUL" in code and "FADD" in code and "FFMA" not in code, code
        assert "LDG.E.128" in code and "STG.E.128" in code, code
        layout = re.search("tt.store.*(#blocked[0-9]*)>", made["ttgir"])[1]
        layout = re.search(layout + " = (.*)", made["ttgir"])[1]
        assert "sizePerThread = [1, 8], threadsPerWarp = [4, 8]" in layout, layout
        print("seen")
"""


def test_compiled_without_fused_multiply_adds_and_with_wide_transfers() -> None:
    # Eight threads store a block of 64 side by side, 16 bytes each.
    assert printed_by_compiled(PROGRAM) == "seen\n"
