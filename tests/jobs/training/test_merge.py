from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fam_engine.config import MergeConfig
from fam_engine.errors import InputError, ModelRefusedError, UsageError
from fam_engine.jobs.training.merge import run_merge
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
