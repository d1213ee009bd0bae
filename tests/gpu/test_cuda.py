"""The path of an NVIDIA GPU against that of the CPU, and against itself. Skipped where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fam_engine import Scorer
from fam_engine.errors import DeviceError
from fam_engine.model import products
from fam_engine.model.exactness import check_exact
from fam_engine.model.loading import load_model
from fam_engine.model.nf4 import quantize
from fam_engine.model.weights import Linear, Weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
REAL = pytest.mark.real_gpu


@pytest.mark.parametrize(
    ("precision", "compute_dtype", "tolerance"),
    [
        # A token's log-prob in fp32 differs by summation order only; in bf16 by its 8 bits.
        pytest.param("fp32", "fp32", 5e-5, marks=REAL),
        pytest.param("nf4", "fp32", 5e-5, marks=REAL),
        pytest.param("bf16", "bf16", 0.02, marks=REAL),
        ("nf4", "bf16", 0.02),
    ],
)
def test_scores_equal_the_cpu_s(
    checkpoint: str,
    records: list[dict[str, object]],
    precision: str,
    compute_dtype: str,
    tolerance: float,
) -> None:
    means = []
    for device in ("cpu", "cuda"):
        scorer = Scorer(checkpoint, precision=precision, compute_dtype=compute_dtype, device=device)
        means.append(scorer.score(records)["nll_mean"].to_numpy())
        scorer.close()
    assert np.abs(means[0] - means[1]).max() <= tolerance


@REAL
def test_the_same_command_gives_the_same_scores_twice(
    checkpoint: str, records: list[dict[str, object]]
) -> None:
    scorer = Scorer(checkpoint, device="cuda")
    first, second = (scorer.score(records)["nll_sum"].to_numpy() for _ in range(2))
    scorer.close()
    assert np.array_equal(first, second)


# Few and many neighbours, short and long ones, before and behind; each fills another number of rows.
NEIGHBOURS = [(0, 0), (3, 0), (40, 17), (90, 0)]


@pytest.mark.parametrize(
    ("precision", "compute_dtype"), [("nf4", "bf16"), ("bf16", "bf16"), ("fp32", "fp32")]
)
@REAL
@pytest.mark.parametrize("budget", [64, 1024, 32768])
def test_exact_scores_do_not_depend_on_neighbours(
    checkpoint: str,
    records: list[dict[str, object]],
    precision: str,
    compute_dtype: str,
    budget: int,
) -> None:
    scorer = Scorer(
        checkpoint,
        precision=precision,
        compute_dtype=compute_dtype,
        device="cuda",
        max_tokens_per_batch=budget,
        exact=True,
    )
    needles, others = records[:5], records[5:]
    tables = []
    for before, behind in NEIGHBOURS:
        before = min(before, len(others))
        table = scorer.score([*others[:before], *needles, *others[before : before + behind]])
        tables.append(table.slice(before, len(needles)))
    scorer.close()
    for name in ("nll_sum", "eos_nll", "entropy_mean", "margin_mean", "rank_mean"):
        first, *rest = (table[name].to_numpy() for table in tables)
        for other in rest:
            assert np.array_equal(first, other), name


def test_exact_is_refused_where_torch_multiplies_the_head(checkpoint: str) -> None:
    with pytest.raises(DeviceError, match="the head is bfloat16 and multiplied in float32"):
        load_model(checkpoint, precision="nf4", compute_dtype="fp32", device="cuda", exact=True)


# [N, K] of Llama-3.2 1B (qkv, o, gate and up, down), Llama-3.1 8B (the same).
SHAPES = [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)]
SHAPES += [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]


@REAL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_products_of_one_height_are_independent(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """What `--exact` rests on, at the shapes of real models."""
    torch.manual_seed(0)
    device, (outer, inner) = torch.device("cuda"), shape
    linear = Linear(weight=torch.randn(shape, device=device, dtype=dtype))
    norm = torch.ones(1, device=device)
    weights = Weights(embed_VD=norm, head_VD=norm, final_norm_D=norm, layers=())
    scratch = products.Scratch(weights, dtype=dtype, device=device, fixed_rows=products.FIXED_ROWS)
    x = torch.randn(3 * products.FIXED_ROWS, inner, device=device, dtype=dtype)
    residual = torch.randn(len(x), outer, device=device, dtype=dtype)

    def both(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = residual[rows]
        products.linear_add_(total, x[rows], linear, scratch)
        return products.linear(x[rows], linear, scratch), total

    every = torch.arange(len(x), device=device)
    whole = both(every)
    for rows in (every.flip(0), every[torch.randperm(len(x), device=device)], every[777:1001]):
        for ours, all_rows in zip(both(rows), whole, strict=True):
            assert torch.equal(ours, all_rows[rows])


@REAL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_matrix_quantized_on_the_gpu_has_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(896, 4864) * torch.logspace(-3, 1, 896)[:, None]).to(dtype)
    ours, theirs = quantize(weight.cuda()), quantize(weight)
    for name in ("packed", "absmax", "absmax2", "offset", "code2"):
        assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)), name


@pytest.mark.parametrize("precision", ["nf4", "bf16", "fp32"])
def test_weights_loaded_onto_the_gpu_have_the_bits_of_the_cpu(
    checkpoint: str, precision: str
) -> None:
    ours, theirs = (
        load_model(checkpoint, precision=precision, compute_dtype="fp32", device=device).weights
        for device in ("cuda", "cpu")
    )
    for one, other in zip(ours.tensors(), theirs.tensors(), strict=True):
        assert torch.equal(one.cpu(), other)


def test_exact_holds_for_a_model(checkpoint: str) -> None:
    check_exact(load_model(checkpoint, device="cuda", exact=True))
