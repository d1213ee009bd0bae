"""A job whose input was refused has computed nothing, so its folder is free."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from fam_engine.config import EvalConfig, GenerateConfig, RewriteConfig, ScoreConfig, TrainConfig
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.evaluation import prepare as evaluation
from fam_engine.jobs.generation import prepare as generation
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import STATE_FOLDER
from fam_engine.jobs.rewriting import prepare as rewriting
from fam_engine.jobs.running import Nobody
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
        config = make(
            model=str(tiny_model), data=(str(data),), out=tmp_path / "out", device="cpu", **settings
        )
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
    assert [path.name for path in (tmp_path / "out" / STATE_FOLDER).iterdir()] == ["lock"]
    validation.write_text(json.dumps(GOOD) + "\n")
    begin("train", GOOD, validation=str(validation))
