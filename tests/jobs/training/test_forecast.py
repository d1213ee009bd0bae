from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fam_engine.config import TrainConfig
from fam_engine.jobs.training import forecast as forecasting
from fam_engine.jobs.training.forecast import forecast_train
from fam_engine.jobs.training.job import memory_plan, needs_here
from fam_engine.model.config import ModelConfig
from fam_engine.model.trainable import Policy
from fam_engine.model.training.recomputation import BatchShape
from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import Notes, make_records, read_lines, write_records


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


def test_only_what_the_longest_record_lacks_is_computed_again(
    settings: dict[str, Any], notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By memory in which short records keep both layers' activations, and a long one those of the last."""
    long = {"prompt": "question?\n", "response": 100 * "a "}
    write_records(Path(settings["data"][0]), [*make_records(12), long])
    found: list[float] = []

    def plan_with_little_room(config: TrainConfig, *others: Any) -> Any:  # noqa: ANN401
        needs = needs_here(config, ModelConfig.from_folder(Path(config.model)), others[1])
        room = needs.activations(BatchShape(64, 64), Policy(2))
        return replace(memory_plan(config, *others), room=room)

    def seconds(*_: Any, num_again: float, **__: Any) -> float:  # noqa: ANN401
        found.append(num_again)
        return 1.0

    monkeypatch.setattr(forecasting, "memory_plan", plan_with_little_room)
    monkeypatch.setattr(forecasting, "seconds_a_token", seconds)
    forecast = forecast_train(TrainConfig(**(settings | {"batch_size": 13})), notes)
    of_long = len(long["prompt"]) + len(long["response"]) + 2  # <s> and </s>
    assert found == [of_long / forecast.tokens["all"]]
