"""Matrix products over any kind of weight, and which bits they depend on."""

from __future__ import annotations

import pytest
import torch

from fam_engine.model import ops, products
from fam_engine.model.nf4 import quantize
from fam_engine.model.weights import LayerWeights, Linear, LoraDelta, LoraPart, Weights
from tests.model.plain import dense

# Widths of real models and of tiny ones; 172, 352: no multiple of 64; 48, 40: of no vector.
SHAPES = [
    (64, 172),
    (344, 64),
    (128, 352),
    (704, 128),
    (96, 40),
    (40, 48),
    (1152, 896),
    (896, 1216),
]


def model_of(linear: Linear) -> Weights:
    """Wrap one matrix as the qkv of a model; the rest is never used."""
    one = torch.ones(1)
    tiny = Linear(weight=torch.ones(1, 1))
    layer = LayerWeights(
        input_norm_D=one, post_norm_D=one, qkv=linear, o=tiny, gate_up=tiny, down=tiny
    )
    return Weights(embed_VD=one, head_VD=one, final_norm_D=one, layers=(layer,))


def scratch_for(linear: Linear, dtype: torch.dtype) -> products.Scratch:
    return products.Scratch(model_of(linear), dtype=dtype, device=torch.device("cpu"))


def lora_for(num_rows: int, num_columns: int) -> LoraDelta:
    half = num_rows // 2
    parts = [
        LoraPart(
            row_start=start,
            row_stop=stop,
            lora_A=torch.randn(3, num_columns) * 0.1,
            lora_B=torch.randn(stop - start, 3) * 0.1,
            scaling=1.5,
        )
        for start, stop in ((0, half), (half + 1, num_rows))
    ]
    return LoraDelta(parts=tuple(parts))


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", ["fp64", "fp32", "bf16", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_linear_equals_the_dense_product(
    dtype: torch.dtype, kind: str, with_bias: bool, with_lora: bool
) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(80, 96) * 0.1
    stored = {
        "fp64": lambda: matrix.double(),
        "fp32": lambda: matrix,
        "bf16": matrix.bfloat16,
        "nf4": lambda: (quantize(matrix[:30]), quantize(matrix[30:])),  # 30 * 96 is no whole block
    }[kind]()
    linear = Linear(
        weight=stored,
        bias=torch.randn(80).to(dtype) if with_bias else None,
        lora=lora_for(80, 96) if with_lora else None,
    )
    x, residual = torch.randn(64, 96).to(dtype), torch.randn(64, 80).to(dtype)
    scratch = scratch_for(linear, dtype)
    bias = 0 if linear.bias is None else linear.bias.double()
    truth = x.double() @ dense(linear).T + bias
    # Summation order in fp32 and fp64 (an fp64 scratch holds W + B A of fp32 factors unrounded);
    # in bf16 the rounding of weights and of the result.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert (products.linear(x, linear, scratch) - truth).abs().max() <= tolerance
    part = products.linear(x, linear, scratch, features=slice(7, 20))
    assert (part - truth[:, 7:20]).abs().max() <= tolerance
    expected = residual.double() + truth
    products.linear_add_(residual, x, linear, scratch)
    assert (residual - expected).abs().max() <= tolerance
    gate, up = truth.chunk(2, dim=1)
    activated = products.linear_swiglu(x, linear, scratch)
    assert (activated - torch.nn.functional.silu(gate) * up).abs().max() <= 3 * tolerance


def test_stored_weights_are_never_written() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(64, 64)
    linear = Linear(weight=matrix, lora=lora_for(64, 64))
    before = matrix.clone()
    products.linear(torch.randn(64, 64), linear, scratch_for(linear, torch.float32))
    assert torch.equal(matrix, before)
    ready = Linear(weight=matrix)
    scratch = scratch_for(ready, torch.float32)
    assert scratch.dense(ready) is matrix  # no copy where none is needed


@pytest.mark.parametrize(
    ("num_rows", "num_columns", "num_threads"),
    [(*shape, threads) for shape in SHAPES for threads in (1, 3)] + [(64, 172, 2), (896, 1216, 2)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_multiple_of_64_rows(
    num_rows: int, num_columns: int, dtype: torch.dtype, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    linear = Linear(weight=(torch.randn(num_rows, num_columns) / num_columns**0.5).to(dtype))
    scratch = scratch_for(linear, dtype)
    x, residual = torch.randn(1088, num_columns).to(dtype), torch.randn(1088, num_rows).to(dtype)
    whole, added = products.linear(x, linear, scratch), residual.clone()
    products.linear_add_(added, x, linear, scratch)
    activated = products.linear_swiglu(x, linear, scratch)
    for start, stop in ((0, 64), (64, 192), (448, 768), (1024, 1088), (64, 1088)):
        rows = slice(start, stop)
        assert torch.equal(products.linear(x[rows], linear, scratch), whole[rows])
        part = residual[rows].clone()
        products.linear_add_(part, x[rows], linear, scratch)
        assert torch.equal(part, added[rows])
        assert torch.equal(products.linear_swiglu(x[rows], linear, scratch), activated[rows])


def test_bf16_takes_our_own_kernel_where_the_processor_has_what_it_needs() -> None:
    from fam_engine._rust_tokenize import supports_bf16_products

    probe = torch.empty((64, 64), dtype=torch.bfloat16)
    assert ops.has_fused_logprob(probe, probe) == supports_bf16_products()
    assert not ops.has_fused_logprob(probe.float(), probe.float())
