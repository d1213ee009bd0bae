"""Batches split, packed or whole train alike: their losses differ by rounding, to neither side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import make_records, read_lines, write_records

STEPS = 20


@pytest.mark.parametrize("loss", ["plain", "excess"])
def test_twenty_steps_of_eight(
    train: Train, settings: dict[str, Any], tmp_path: Path, loss: str
) -> None:
    """Eight records a step: one or two at a time and added up, in packs of a few, in one pack."""
    data = write_records(tmp_path / "more.jsonl", make_records(64))
    losses = {}
    for name, budget in (("single", 64), ("packs", 192), ("whole", 4096)):
        train(
            data=(str(data),),
            out=tmp_path / name,
            loss=loss,
            steps=STEPS,
            batch_size=8,
            max_tokens_per_batch=budget,
            learning_rate=1e-3,
            dropout=0.0,  # its masks follow from the micro-batch
        )
        log = read_lines(tmp_path / name / "log.jsonl")
        losses[name] = np.array([step["loss"] for step in log])
    assert all(len(found) == STEPS for found in losses.values())
    assert losses["whole"][-1] < losses["whole"][0]
    for name in ("single", "packs"):
        residual = losses[name] / losses["whole"] - 1
        assert np.abs(residual).max() <= 1e-6
        # A mistake of one side, however small, would show as a mean that is no chance.
        error = residual.std(ddof=1) / np.sqrt(STEPS)
        assert abs(residual.mean()) <= 3 * error + 1e-9
