from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fam_engine
from fam_engine.errors import UsageError
from fam_engine.integrations.ray_train import train_loop
from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import make_records


def test_records_in_memory_train_the_adapter_of_a_file(
    train: Train, settings: dict[str, Any], tmp_path: Path
) -> None:
    given = {name: v for name, v in settings.items() if name not in ("model", "data", "out")}
    trainer = fam_engine.Trainer(settings["model"], **given)
    outcome = trainer.train(make_records(12), tmp_path / "own")
    name = "adapter_model.safetensors"
    assert (outcome.adapter / name).read_bytes() == (train().adapter / name).read_bytes()
    # The same records again: nothing is repeated.
    assert trainer.train(make_records(12), tmp_path / "own").summary == outcome.summary
    with pytest.raises(UsageError, match="contents of the file in data"):
        trainer.train(make_records(10), tmp_path / "own")


def test_validation_records(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = fam_engine.Trainer(settings["model"], precision="fp32", device="cpu", rank=2, steps=1)
    outcome = trainer.train(make_records(6), tmp_path / "own", validation=make_records(4, seed=1))
    assert outcome.summary["examples"]["validation"] == 4


def test_a_setting_that_is_wrong_is_named_at_once(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="did you mean `learning_rate`"):
        fam_engine.Trainer(tiny_model, learning_rat=1.0)
    with pytest.raises(UsageError, match=r"`precision`.*'int8'"):
        fam_engine.Trainer(tiny_model, precision="int8")


def test_settings_that_would_do_nothing_are_refused(tiny_model: Path) -> None:
    for name in ("data", "out"):
        with pytest.raises(UsageError, match=f"`{name}` would do nothing.*to `train`"):
            fam_engine.Trainer(tiny_model, **{name: "x"})
    with pytest.raises(UsageError, match=r"`min_excess`.* `loss` excess, this is plain"):
        fam_engine.Trainer(tiny_model, min_excess=-2)
    with pytest.raises(UsageError, match=r"`min_excess`.* `loss` excess, this is stm"):
        train_loop({"model": "x", "data": "x", "out": "x", "loss": "stm", "min_excess": -2})
    fam_engine.Trainer(tiny_model, loss="excess", min_excess=-2)
