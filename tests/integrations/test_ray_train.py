"""Ray Train on two workers of this machine (`make test-ray`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fam_engine.config import TrainConfig
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.training.job import run_train
from tests.jobs.training.small_job import make_records, read_lines, write_records

pytestmark = pytest.mark.ray


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    data = write_records(tmp_path / "data.jsonl", make_records(12))
    return {
        "model": str(tiny_model),
        "data": [str(data)],
        "precision": "fp32",
        "device": "cpu",
        "rank": 2,
        "steps": 3,
        "batch_size": 4,
        "max_tokens_per_batch": 64,
    }


def test_two_workers_train_as_one_process(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="needs Ray (make test-ray)")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from fam_engine.integrations.ray_train import train_loop

    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    run_train(TrainConfig.model_validate(settings | {"out": one}), Nobody())
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        TorchTrainer(
            train_loop,
            train_loop_config=settings | {"out": two},
            scaling_config=ScalingConfig(num_workers=2),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(storage_path=str(tmp_path / "ray")),
        ).fit()
    finally:
        ray.shutdown()
    summary = json.loads((Path(two) / "summary.json").read_text())
    assert summary["performance"]["num_processes"] == 2
    losses = ([line["loss"] for line in read_lines(Path(out) / "log.jsonl")] for out in (one, two))
    assert next(losses) == pytest.approx(next(losses), rel=1e-5)
