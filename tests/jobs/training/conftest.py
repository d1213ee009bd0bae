"""A job small enough to run in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fam_engine.config import TrainConfig
from fam_engine.jobs.training.job import TrainOutcome, run_train
from tests.jobs.training.small_job import Notes, make_records, write_records

Train = Callable[..., TrainOutcome]


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a small job: 12 records, 4 a step, several micro-batches, dropout."""
    data = write_records(tmp_path / "data.jsonl", make_records(12))
    return {
        "model": str(tiny_model),
        "data": (str(data),),
        "out": tmp_path / "out",
        "precision": "fp32",
        "device": "cpu",
        "rank": 2,
        "alpha": 8.0,
        "dropout": 0.1,
        "steps": 7,
        "batch_size": 4,
        "max_tokens_per_batch": 64,
        "learning_rate": 1e-2,
    }


@pytest.fixture
def train(settings: dict[str, Any], notes: Notes) -> Train:
    """Run the small job with other settings."""

    def run(**changes: Any) -> TrainOutcome:  # noqa: ANN401 - any setting
        return run_train(TrainConfig(**(settings | changes)), notes)

    return run
