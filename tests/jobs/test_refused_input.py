"""A job whose input, model or device was refused has computed nothing, so its folder is free."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fam_engine.config import EvalConfig, GenerateConfig, RewriteConfig, ScoreConfig, TrainConfig
from fam_engine.errors import InputError, ModelRefusedError, UsageError
from fam_engine.jobs.evaluation import prepare as evaluation
from fam_engine.jobs.generation import prepare as generation
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import STATE_FOLDER
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.rewriting import prepare as rewriting
from fam_engine.jobs.scoring import prepare as scoring
from fam_engine.jobs.status.job import read_status
from fam_engine.jobs.training import prepare as training

COMMANDS: dict[str, tuple[Any, Callable[..., AbstractContextManager[Any]]]] = {
    "score": (ScoreConfig, scoring.prepared),
    "generate": (GenerateConfig, generation.prepared),
    "rewrite": (RewriteConfig, rewriting.prepared),
    "train": (TrainConfig, training.prepared),
    "eval": (EvalConfig, evaluation.prepared),
}
GOOD = {"prompt": "1 + 1?\n", "response": "2", "question": "1 + 1?", "answer": "2"}
BAD = {name.upper(): value for name, value in GOOD.items()}


@pytest.fixture
def begin(tiny_model: Path, tmp_path: Path) -> Callable[..., None]:
    """Begin a job: `begin("score", record, ...)` reads the input and computes nothing."""

    def run(command: str, record: dict[str, str], **settings: Any) -> None:  # noqa: ANN401
        make, prepared = COMMANDS[command]
        data = tmp_path / "data.jsonl"
        data.write_text(json.dumps(record) + "\n")
        if command in ("generate", "eval", "rewrite"):
            settings["max_new_tokens"] = 16
        settings = {"model": str(tiny_model), "device": "cpu", **settings}
        config = make(data=(str(data),), out=tmp_path / "out", **settings)
        with Interrupts() as interrupts, prepared(config, config.out, Nobody(), interrupts):
            pass

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_job_whose_input_was_refused_leaves_its_folder_free(
    command: str, begin: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not one record is usable"):
        begin(command, BAD)
    with pytest.raises(InputError, match="holds no job"):
        read_status(tmp_path / "out")
    begin(command, GOOD)
    begin(command, GOOD)
    with pytest.raises(UsageError, match="holds a job with"):
        begin(command, {**GOOD, "id": "another"})
    assert read_status(tmp_path / "out").command == command


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_cannot_be_loaded_is_refused_before_there_is_a_folder(
    command: str, begin: Callable[..., None], tiny_model: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(tiny_model, tmp_path / "damaged")
    save_file({"model.norm.weight": torch.ones(3)}, damaged / "model.safetensors")
    with pytest.raises(ModelRefusedError, match="is missing"):
        begin(command, GOOD, model=str(damaged))
    with pytest.raises(UsageError, match="would round"):
        begin(command, GOOD, precision="fp32", compute_dtype="bf16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["score", "generate", "rewrite"])
def test_an_adapter_for_another_model_is_refused_before_there_is_a_folder(
    command: str, begin: Callable[..., None], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    form = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["c_attn"]}
    (adapter / "adapter_config.json").write_text(json.dumps(form))
    with pytest.raises(ModelRefusedError, match="c_attn"):
        begin(command, GOOD, adapter=adapter)
    assert not (tmp_path / "out").exists()


def test_a_folder_left_free_takes_a_job_of_another_command(
    begin: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        begin("eval", BAD)
    begin("generate", GOOD)
    assert read_status(tmp_path / "out").command == "generate"


def test_a_refused_validation_file_leaves_the_folder_free(
    begin: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="all records are of one group"):
        begin("train", GOOD, validation_share=0.5)
    validation = tmp_path / "validation.jsonl"
    validation.write_text(json.dumps(BAD) + "\n")
    with pytest.raises(InputError, match=r"validation\.jsonl:1: not one record is usable"):
        begin("train", GOOD, validation=str(validation))
    # The one --map is of both files, so it is no remedy for columns of this one alone.
    with pytest.raises(InputError, match=r"\(--map is of --data and --validation alike: give both"):
        begin("train", GOOD, validation=str(validation))
    validation.write_text("{")
    with pytest.raises(InputError, match="E_JSON") as caught:
        begin("train", GOOD, validation=str(validation))
    assert caught.value.hint is None
    assert [path.name for path in (tmp_path / "out" / STATE_FOLDER).iterdir()] == ["lock"]
    validation.write_text(json.dumps(GOOD) + "\n")
    begin("train", GOOD, validation=str(validation))


@pytest.mark.parametrize("command", ["score", "generate", "train"])
def test_sequences_longer_than_the_model_takes_are_refused(
    command: str, begin: Callable[..., None], tiny_model: Path, tmp_path: Path
) -> None:
    limit = json.loads((tiny_model / "config.json").read_text())["max_position_embeddings"]
    with pytest.raises(UsageError, match=f"max_length {limit + 1}, expected at most {limit}"):
        begin(command, GOOD, max_length=limit + 1)
    begin(command, GOOD, max_length=limit)
