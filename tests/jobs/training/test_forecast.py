from __future__ import annotations

from typing import Any

import pytest

from fam_engine.config import TrainConfig
from fam_engine.jobs.training.forecast import forecast_train
from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import Notes, make_records, read_lines


def test_a_forecast_counts_what_the_job_then_does(
    train: Train, settings: dict[str, Any], notes: Notes
) -> None:
    forecast = forecast_train(TrainConfig(**settings, validation_share=0.3), notes)
    assert not settings["out"].exists()
    summary = train(validation_share=0.3).summary
    assert forecast.examples == summary["examples"]
    assert forecast.steps == summary["training"]["steps"]
    assert forecast.tokens["supervised"] == summary["training"]["tokens_an_epoch"]
    assert forecast.max_tokens_per_batch == 64
    assert forecast.micro_batches > 1
    # Two layers: (64 + 64) + 2 (32 + 64) + (64 + 64) + 2 (128 + 64) + (64 + 128), times rank 2.
    assert forecast.num_trainable == 2 * 2 * (128 + 2 * 96 + 128 + 2 * 192 + 192)
    assert forecast.seconds > 0
    assert forecast.memory_bytes > 0
    assert read_lines(settings["out"] / "log.jsonl")[-1]["step"] == forecast.steps


@pytest.mark.parametrize("precision", ["nf4", "bf16"])
def test_a_trial_runs_at_every_precision(
    settings: dict[str, Any], notes: Notes, precision: str
) -> None:
    config = TrainConfig(**(settings | {"precision": precision, "loss": "stm"}))
    assert forecast_train(config, notes).seconds > 0


def test_the_examples_shown_are_split_where_learning_begins(
    settings: dict[str, Any], notes: Notes
) -> None:
    forecast = forecast_train(TrainConfig(**settings), notes)
    for record, shown in zip(make_records(12), forecast.shown, strict=False):
        assert shown["prompt"] == f"<s>{record['prompt']}"
        assert shown["supervised"] == [*record["response"], "</s>"]


def test_shared_prompts_are_counted_once(settings: dict[str, Any], notes: Notes) -> None:
    whole = {"batch_size": 12, "max_tokens_per_batch": 4096}
    tokens = forecast_train(TrainConfig(**(settings | whole)), notes).tokens
    # Two answers a question: half the prompts.
    prompts = sum(len(record["prompt"]) + 1 for record in make_records(12)) // 2
    assert tokens["all"] - tokens["computed"] == prompts
