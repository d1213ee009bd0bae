from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import nf4_dequantize, nf4_dequantize_triton
from fam_engine.kernels.augment import augmented_rank, write_margins
from fam_engine.kernels.nf4_dequantize import LoraFactors
from fam_engine.model.nf4 import quantize
from tests.kernels.on import DEVICE

# q and v of ranks of their own; k, rows 40 to 49, has no adapter.
RANKS = {0: (40, 3), 50: (11, 5)}
N, K = 61, 128


def random_parts() -> list[tuple[int, LoraFactors]]:
    torch.manual_seed(0)
    return [
        (
            first_row,
            LoraFactors(
                lora_A=torch.randn(rank, K, device=DEVICE),
                lora_B=torch.randn(num_rows, rank, device=DEVICE),
                scaling=0.5 + first_row,
            ),
        )
        for first_row, (num_rows, rank) in RANKS.items()
    ]


def merged_delta(parts: list[tuple[int, LoraFactors]]) -> torch.Tensor:
    delta = torch.zeros(N, K, dtype=torch.float64, device=DEVICE)
    for row, lora in parts:
        rows = slice(row, row + lora.lora_B.shape[0])
        delta[rows] = lora.lora_B.double() @ lora.lora_A.double() * lora.scaling
    return delta


@pytest.mark.parametrize("rank", [8, 16])
def test_one_product_computes_matrix_and_adapters(rank: int) -> None:
    parts = random_parts()
    out = torch.full((N + rank, K + rank), torch.nan, dtype=torch.float64, device=DEVICE)
    W = torch.randn(N, K, dtype=torch.float64, device=DEVICE)
    out[:N, :K] = W
    write_margins(parts, shape=(N, K), out=out)
    merged = W + merged_delta(parts)

    x = torch.randn(7, K, dtype=torch.float64, device=DEVICE)
    x_augmented = torch.cat((x, x @ out[N:, :K].T), dim=1)
    torch.testing.assert_close(x_augmented @ out[:N].T, x @ merged.T)

    dy = torch.randn(7, N, dtype=torch.float64, device=DEVICE)
    dy_augmented = torch.cat((dy, dy @ out[:N, K:]), dim=1)
    torch.testing.assert_close(dy_augmented @ out[:, :K], dy @ merged)


def test_all_but_factors_is_zero_and_the_matrix_is_untouched() -> None:
    out = torch.full((N + 16, K + 16), 7.0, device=DEVICE)
    write_margins(random_parts(), shape=(N, K), out=out)
    assert (out[:N, :K] == 7).all()
    written = torch.zeros_like(out, dtype=torch.bool)
    written[:N, :K] = True
    written[N : N + 8, :K] = True  # 3 + 5 rows of A
    written[:40, K : K + 3] = written[50:, K + 3 : K + 8] = True
    written[N:, K:] = False
    assert (out[written] != 0).all()
    assert (out[~written] == 0).all()


def test_without_adapters_margins_are_zero() -> None:
    out = torch.full((N + 16, K + 16), 7.0, device=DEVICE)
    write_margins([], shape=(N, K), out=out)
    assert (out[N:] == 0).all()
    assert (out[:, K:] == 0).all()


def test_scaled_factors_are_rounded_once() -> None:
    parts = random_parts()
    out = torch.zeros(N + 16, K + 16, dtype=torch.float16, device=DEVICE)
    write_margins(parts, shape=(N, K), out=out)
    _, lora = parts[1]
    assert torch.equal(out[50:N, K + 3 : K + 8], (lora.lora_B * lora.scaling).half())
    assert torch.equal(out[N + 3 : N + 8, :K], lora.lora_A.half())


@pytest.mark.parametrize("module", [nf4_dequantize, nf4_dequantize_triton])
def test_dequantizers_fill_the_rest(module: object) -> None:
    weight = quantize(torch.randn(N, K)).to(DEVICE)
    arguments = (weight.packed, weight.absmax, weight.absmax2, weight.offset, weight.code2)
    out = torch.full((N + 16, K + 16), torch.nan, device=DEVICE)
    write_margins(random_parts(), shape=(N, K), out=out)
    module.nf4_dequantize(*arguments, shape=(N, K), dtype=out.dtype, out=out[:N, :K])
    assert torch.equal(
        out[:N, :K], nf4_dequantize.nf4_dequantize(*arguments, shape=(N, K), dtype=out.dtype)
    )
    assert not out.isnan().any()


@pytest.mark.parametrize(("ranks", "expected"), [([], 0), ([8], 16), ([16], 16), ([16, 0, 1], 32)])
def test_augmented_rank(ranks: list[int], expected: int) -> None:
    assert augmented_rank(ranks) == expected
