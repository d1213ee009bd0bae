"""The torch path on an NVIDIA GPU against the same path on the CPU. Skipped where there is no GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fam_engine import Scorer
from fam_engine.embedded import DEMO_RECORDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture(scope="module")
def records() -> list[dict[str, object]]:
    lines = DEMO_RECORDS.read_text(encoding="utf-8").splitlines()[:100]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("precision", "compute_dtype", "tolerance"),
    [
        # A token's log-prob in fp32 differs by summation order only; in bf16 by its 8 bits.
        ("fp32", "fp32", 5e-5),
        ("nf4", "fp32", 5e-5),
        ("bf16", "bf16", 0.02),
        ("nf4", "bf16", 0.02),
    ],
)
def test_scores_equal_the_cpu_s(
    records: list[dict[str, object]], precision: str, compute_dtype: str, tolerance: float
) -> None:
    means = []
    for device in ("cpu", "cuda"):
        scorer = Scorer("embedded", precision=precision, compute_dtype=compute_dtype, device=device)
        means.append(scorer.score(records)["nll_mean"].to_numpy())
        scorer.close()
    assert np.abs(means[0] - means[1]).max() <= tolerance


def test_the_same_command_gives_the_same_scores_twice(records: list[dict[str, object]]) -> None:
    scorer = Scorer("embedded", device="cuda")
    first, second = (scorer.score(records)["nll_sum"].to_numpy() for _ in range(2))
    scorer.close()
    assert np.array_equal(first, second)
