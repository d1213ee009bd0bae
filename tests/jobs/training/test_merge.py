from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fam_engine.config import MergeConfig
from fam_engine.errors import InputError, ModelRefusedError, UsageError
from fam_engine.jobs.training.merge import forecast_merge, run_merge
from fam_engine.report.training import print_merge_forecast
from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import Notes


def test_scores_before_and_after_are_given(
    train: Train, settings: dict[str, Any], tmp_path: Path, notes: Notes
) -> None:
    adapter = train(steps=3).adapter
    merging: dict[str, Any] = {"model": settings["model"], "adapter": adapter, "device": "cpu"}
    merging |= {"data": settings["data"], "precision": "fp32", "limit": 6}
    out = tmp_path / "merged"
    outcome = run_merge(MergeConfig(**merging, out=out), notes)
    rows = outcome.summary["scores"]
    assert [row["model"] for row in rows] == ["model alone", "model and adapter", "merged model"]
    assert [row["n"] for row in rows] == [6, 6, 6]
    alone, adapted, merged = (row["perplexity"]["token_weighted"]["value"] for row in rows)
    assert adapted < alone
    # The tiny model is stored in fp32, so merging costs rounding only.
    assert merged == pytest.approx(adapted, rel=1e-5)
    weights = load_file(out / "model.safetensors")
    base = load_file(Path(settings["model"]) / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(weights[name], base[name])
    with pytest.raises(UsageError, match="has files in it"):
        run_merge(MergeConfig(**merging, out=out), notes)


def test_without_records_nothing_is_scored(
    train: Train, settings: dict[str, Any], tmp_path: Path, notes: Notes
) -> None:
    adapter = train(steps=1).adapter
    config = MergeConfig(model=settings["model"], adapter=adapter, out=tmp_path / "merged")
    assert run_merge(config, notes).summary["scores"] == []


def test_what_is_not_there_is_named_before_any_work(
    settings: dict[str, Any], tmp_path: Path, notes: Notes
) -> None:
    out = tmp_path / "merged"
    with pytest.raises(ModelRefusedError, match="E_ADAPTER_NOT_FOUND"):
        run_merge(MergeConfig(model=settings["model"], adapter=tmp_path / "no", out=out), notes)
    (tmp_path / "adapter_config.json").write_text("{}")
    config = MergeConfig(
        model=settings["model"], adapter=tmp_path, out=out, data=("nowhere.jsonl",)
    )
    with pytest.raises(InputError, match="does not exist"):
        run_merge(config, notes)
    assert not out.exists()


def test_a_forecast_says_what_will_be_written_and_writes_nothing(
    train: Train, settings: dict[str, Any], tmp_path: Path, notes: Notes
) -> None:
    adapter = train(steps=1).adapter
    out = tmp_path / "deep" / "merged"
    config = MergeConfig(model=settings["model"], adapter=adapter, out=out)
    found = forecast_merge(config, notes).summary
    assert not out.parent.exists()
    assert found["free_bytes"] > found["num_bytes"]
    run_merge(config, notes)
    tensors = {path.name: load_file(path) for path in out.glob("*.safetensors")}
    assert found["files"] == list(tensors)
    sizes = [tensor.nbytes for of_file in tensors.values() for tensor in of_file.values()]
    assert found["num_bytes"] == sum(sizes)
    # What would stop the merge stops its forecast.
    with pytest.raises(UsageError, match="has files in it"):
        forecast_merge(config, notes)


def test_a_disk_that_is_too_small_is_told() -> None:
    forecast = {"num_matrices": 7, "rank": 8, "base": "original", "files": ["model.safetensors"]}
    console = Console(record=True, width=80)
    for free in (None, 2**31, 2**29):
        print_merge_forecast(forecast | {"num_bytes": 2**30, "free_bytes": free}, console)
    assert console.export_text().splitlines() == [
        "7 matrices of rank 8 into original weights",
        "1.00 GiB in 1 file",
        "7 matrices of rank 8 into original weights",
        "1.00 GiB in 1 file, 2.00 are free",
        "7 matrices of rank 8 into original weights",
        "1.00 GiB in 1 file, 0.50 are free",
        "this does not fit on the disk",
    ]
