"""NF4: our dequantizer against bitsandbytes, bit by bit, and the reading of quantized tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from fam_engine.errors import ModelRefusedError
from fam_engine.kernels.nf4_dequantize import NF4_CODE, LoraFactors, NF4Weight, nf4_dequantize
from fam_engine.model import nf4
from fam_engine.model.nf4 import bitsandbytes_functional, from_checkpoint, quantize
from tests.kernels.weights import from_state

if TYPE_CHECKING:
    from pathlib import Path

    from bitsandbytes.functional import QuantState

FORMATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (1, 1),  # half a byte
    (3, 5),  # odd, less than a block
    (1, 64),  # one block
    (7, 172),  # blocks straddle rows, the last one is short
    (64, 172),  # the MLP of stories260K
    (64, 352),  # 5.5 blocks a row: the MLP of babyllama105
    (129, 896),  # rows of whole blocks
    (5, 4096),
    (8200, 64),  # more blocks than a chunk
    (8195, 65),  # the same with a short last block
]


def quantize_with_bitsandbytes(weight: torch.Tensor) -> tuple[torch.Tensor, QuantState]:
    return bitsandbytes_functional().quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )


def dequantize_with_bitsandbytes(
    packed: torch.Tensor, state: QuantState, shape: tuple[int, int]
) -> torch.Tensor:
    """Dequantize the flattened matrix.

    bitsandbytes 0.50.2 on AVX-512 takes blocks to begin anew with each row where
    K % 16 == 0 and K % 64 != 0, though it quantizes over the flattened matrix; a single row is
    right. Its CUDA kernels and its generic code have no rows at all.
    """
    state.shape = (shape[0] * shape[1],)
    return bitsandbytes_functional().dequantize_4bit(packed.view(-1, 1), state).view(shape)


def dequantize(
    weight: NF4Weight,
    dtype: torch.dtype,
    *,
    out: torch.Tensor | None = None,
    lora: LoraFactors | None = None,
) -> torch.Tensor:
    out = torch.empty(weight.shape, dtype=dtype) if out is None else out
    return nf4_dequantize([weight], out=out, loras=[lora] if lora else ())


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantize_equals_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # Rows of very different size make blocks of different absmax.
    weight = torch.randn(shape) * torch.logspace(-3, 1, shape[0])[:, None]
    packed, state = quantize_with_bitsandbytes(weight)
    state.dtype = dtype
    expected = dequantize_with_bitsandbytes(packed, state, shape)
    assert torch.equal(dequantize(quantize(weight), dtype), expected)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_every_byte_with_every_scale_equals_bitsandbytes(dtype: torch.dtype) -> None:
    # 256 blocks, each with another absmax index, each holding 32 of the 256 bytes.
    _, state = quantize_with_bitsandbytes(torch.randn(256, 64))
    packed = torch.arange(256 * 32, dtype=torch.int64).mul_(7).remainder_(256).to(torch.uint8)
    assert packed.unique().numel() == 256
    state.absmax = torch.arange(256, dtype=torch.uint8)
    state.dtype = dtype
    expected = dequantize_with_bitsandbytes(packed, state, (256, 64))
    assert torch.equal(dequantize(from_state(packed, state, (256, 64)), dtype), expected)


def test_dequantize_writes_into_rows_of_scratch() -> None:
    weight = quantize(torch.randn(6, 96))
    scratch = torch.full((10, 96), torch.nan)
    out = dequantize(weight, torch.float32, out=scratch[2:8])
    assert out.data_ptr() == scratch[2:8].data_ptr()
    assert torch.equal(scratch[2:8], dequantize(weight, torch.float32))
    assert scratch[:2].isnan().all()
    assert scratch[8:].isnan().all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 65), (130, 64), (131, 4098), (300, 1792)], ids=str)
def test_rows_may_be_far_apart(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = quantize(torch.randn(shape) * torch.logspace(-3, 1, shape[0])[:, None])
    room = torch.full((shape[0], shape[1] + 3), 7.0, dtype=dtype)
    out = dequantize(weight, dtype, out=room[:, : shape[1]])
    assert out.data_ptr() == room.data_ptr()
    assert torch.equal(out, dequantize(weight, dtype))
    assert (room[:, shape[1] :] == 7).all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (130, 64), (300, 1792)], ids=str)
def test_an_adapter_is_merged_with_one_rounding(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = quantize(torch.randn(shape))
    lora = LoraFactors(
        lora_A=torch.randn(7, shape[1]), lora_B=torch.randn(shape[0], 7), scaling=0.3
    )
    delta = lora.lora_B.double() @ lora.lora_A.double() * lora.scaling
    exact = dequantize(weight, torch.float64) + delta
    torch.testing.assert_close(dequantize(weight, torch.float64, lora=lora), exact)
    rounding = torch.finfo(dtype).eps * 0.51
    size = lora.lora_B.double().abs() @ lora.lora_A.double().abs() * lora.scaling
    got = dequantize(weight, dtype, lora=lora).double()
    assert ((got - exact).abs() <= rounding * exact.abs() + 2**-21 * (size + 1)).all()


def test_float64_holds_the_float32_values() -> None:
    weight = quantize(torch.randn(9, 172))
    wide = dequantize(weight, torch.float64)
    assert wide.dtype == torch.float64
    assert torch.equal(wide, dequantize(weight, torch.float32).double())


def test_zeros_stay_zeros() -> None:
    assert not dequantize(quantize(torch.zeros(4, 96)), torch.float32).any()


def test_table_is_bitsandbytes_own() -> None:
    table = bitsandbytes_functional().get_4bit_type("nf4", device="cpu")
    assert tuple(table.tolist()) == NF4_CODE


def test_table_survives_inference_mode() -> None:
    weight = quantize(torch.randn(2, 64))
    with torch.inference_mode():
        dequantize(weight, torch.float32)
    x = torch.ones(1, 64, requires_grad=True)
    (x @ dequantize(weight, torch.float32).T).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_quantize_keeps_what_bitsandbytes_gives(dtype: torch.dtype) -> None:
    source = torch.randn(40, 172).to(dtype)
    packed, state = quantize_with_bitsandbytes(source)
    weight = quantize(source)
    assert weight.shape == (40, 172)
    assert torch.equal(weight.packed, packed.view(-1))
    assert torch.equal(weight.absmax, state.absmax)
    assert torch.equal(weight.absmax2, state.state2.absmax)
    assert torch.equal(weight.offset, state.offset)
    assert torch.equal(weight.code2, state.state2.code)


def test_bitsandbytes_is_imported_quietly_and_without_downloads(tmp_path: Path) -> None:
    canary = tmp_path / "kernels.py"
    canary.write_text("print('the kernels package would download and run code')")
    program = (
        "import sys; from fam_engine.model import nf4; nf4.bitsandbytes_functional(); "
        "assert 'kernels' not in sys.modules"
    )
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout + result.stderr == ""


def as_checkpoint(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    packed, state = quantize_with_bitsandbytes(weight)
    return {"weight": packed, **state.as_dict(packed=True)}


def edit_state(parts: dict[str, torch.Tensor], **changes: object) -> None:
    state = json.loads(bytes(parts[nf4.STATE_NAME].tolist())) | changes
    parts[nf4.STATE_NAME] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def test_from_checkpoint_equals_quantize() -> None:
    source = torch.randn(40, 172)
    weight = from_checkpoint("w", as_checkpoint(source), (40, 172))
    assert torch.equal(
        dequantize(weight, torch.float32), dequantize(quantize(source), torch.float32)
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quant_type": "fp4"}, "quant_type"),
        ({"blocksize": 128}, "blocksize"),
        ({"nested_blocksize": 128}, "nested_blocksize"),
        ({"nested_dtype": "bfloat16"}, "nested_dtype"),
        ({"shape": [172, 40]}, "shape"),
        ({"nested_offset": 1e300}, "nested_offset"),
        ({"nested_offset": "0"}, "nested_offset"),
        ({"nested_offset": True}, "nested_offset"),
    ],
)
def test_from_checkpoint_refuses_other_formats(change: dict[str, object], named: str) -> None:
    parts = as_checkpoint(torch.randn(40, 172))
    edit_state(parts, **change)
    with pytest.raises(ModelRefusedError, match=f"`layer.w`.*{named}"):
        from_checkpoint("layer.w", parts, (40, 172))


@pytest.mark.parametrize(
    ("end", "tensor"),
    [
        ("weight", torch.zeros(3, dtype=torch.uint8)),
        ("absmax", torch.zeros(108)),  # as without double quantization
        ("nested_absmax", torch.full((1,), torch.nan)),
        ("nested_quant_map", torch.zeros(255)),
        ("quant_map", torch.zeros(16)),
        (nf4.STATE_NAME, torch.zeros(5, dtype=torch.uint8)),
    ],
)
def test_from_checkpoint_refuses_bad_tensors(end: str, tensor: torch.Tensor) -> None:
    parts = as_checkpoint(torch.randn(40, 172))
    parts[end] = tensor
    with pytest.raises(ModelRefusedError, match="E_MODEL_NF4"):
        from_checkpoint("layer.w", parts, (40, 172))
