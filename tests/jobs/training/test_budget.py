from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fam_engine.config import TrainConfig
from fam_engine.errors import DeviceError
from fam_engine.jobs.training import budget
from fam_engine.jobs.training.budget import MemoryPlan, check_memory, plan_memory, process_share
from fam_engine.jobs.training.forecast import forecast_train
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import LoraSpec
from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import Notes

GIB = 2**30
CPU = torch.device("cpu")


def test_a_plan_adds_up(tiny_model: Path) -> None:
    spec = LoraSpec(rank=2, alpha=8.0, dropout=0.0, target_modules=("q_proj",), use_rslora=False)
    config = ModelConfig.from_folder(tiny_model)

    def plan(num_tokens: int, optimizer: Any) -> MemoryPlan:  # noqa: ANN401 - a literal
        return plan_memory(
            config,
            spec,
            num_tokens,
            precision="fp32",
            compute_dtype=torch.float32,
            optimizer=optimizer,
        )

    small = plan(64, "adamw")
    # Two layers, rank 2, A of 64 columns and B of 64 rows: value and gradient in 4 bytes each.
    assert small.adapter == 2 * 2 * (64 + 64) * 8
    assert small.optimizer == small.adapter
    assert plan(64, "adamw8bit").optimizer == small.adapter // 4
    assert plan(128, "adamw").activations == 2 * small.activations
    parts = (small.weights, small.adapter, small.optimizer, small.activations)
    assert small.total == sum(parts)
    # q, k, v, o and gate, up, down of two layers, embeddings and head, 4 bytes each.
    matrices = 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128) + 2 * 258 * 64
    assert small.weights == 4 * matrices


def test_what_does_not_fit_is_refused_with_its_parts() -> None:
    plan = MemoryPlan(4 * GIB, 1 * GIB, 2 * GIB, 9 * GIB, num_tokens=8192)
    check_memory(plan, 16 * GIB, CPU)
    with pytest.raises(DeviceError) as caught:
        check_memory(plan, 15 * GIB, CPU)
    line = str(caught.value)
    assert "takes about 16.00 GiB: weights 4.00, adapter 1.00, optimizer 2.00" in line
    assert "the longest record (8,192 tokens) 9.00; a process has 15.00 on cpu" in line
    # What helps most comes first.
    assert line.index("--max-length") < line.index("nf4") < line.index("--rank")
    assert (caught.value.code, caught.value.exit_code) == ("E_MEMORY_PLAN", 8)


def test_processes_on_a_cpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda _: 12 * GIB)
    assert process_share(CPU, 3) == 4 * GIB
    assert process_share(torch.device("cuda"), 3) == 12 * GIB


def test_a_job_is_refused_before_the_model_is_loaded_and_by_its_dry_run(
    train: Train, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda _: 1 << 10)
    monkeypatch.setattr("fam_engine.jobs.training.job.open_model", pytest.fail)
    with pytest.raises(DeviceError, match=r"E_MEMORY_PLAN.*weights"):
        train()
    with pytest.raises(DeviceError, match="E_MEMORY_PLAN"):
        forecast_train(TrainConfig(**settings), Notes())
