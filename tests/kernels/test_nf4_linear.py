from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.nf4_dequantize import LoraFactors, NF4Weight, nf4_dequantize
from fam_engine.kernels.nf4_linear import nf4_linear
from tests.kernels.on import rounding

# What the reference does on a CPU: no interpreter, so bf16 and fp64 too.
FORMATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("num_rows", [1, 17, 64])
def test_equals_float64_rounded_once(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    num_blocks = 37 * 5
    packed = torch.randint(256, (num_blocks * 32,), dtype=torch.uint8)
    absmax = torch.randint(256, (num_blocks,), dtype=torch.uint8)
    code2 = torch.rand(256) * 2 - 1
    weight = NF4Weight(
        packed=packed,
        absmax=absmax,
        absmax2=torch.rand(1) * 0.1,
        offset=torch.tensor(0.2),
        code2=code2,
        shape=(37, 320),
    )
    lora = LoraFactors(lora_A=torch.randn(8, 320), lora_B=torch.randn(37, 8), scaling=0.5)
    x, bias = torch.randn(num_rows, 320).to(dtype), torch.randn(37).to(dtype)
    room = torch.full((num_rows, 50), torch.nan, dtype=dtype)
    nf4_linear(x, [weight], out=room[:, 9:46], bias=bias, loras=[lora])
    wide = torch.promote_types(dtype, torch.float32)
    dense = nf4_dequantize([weight], out=torch.empty(weight.shape, dtype=wide)).double()
    update = x.double() @ lora.lora_A.double().t() @ lora.lora_B.double().t()
    truth = x.double() @ dense.t() + lora.scaling * update + bias.double()
    tolerance = rounding(dtype) if dtype != torch.float64 else 1e-15
    small = 1e-13 if dtype == torch.float64 else 1e-4
    assert ((room[:, 9:46].double() - truth).abs() <= tolerance * truth.abs() + small).all()
    once = room[:, 9:46].clone()
    nf4_linear(x, [weight], out=room[:, 9:46], bias=bias, loras=[lora], adds=True)
    twice = 2 * truth
    assert ((room[:, 9:46].double() - twice).abs() <= 2 * tolerance * twice.abs() + small).all()
    assert not torch.equal(room[:, 9:46], once)
    assert room[:, :9].isnan().all()
    assert room[:, 46:].isnan().all()
