from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

import fam_engine
from fam_engine.errors import LockedError, ModelRefusedError, UsageError
from fam_engine.integrations.ray_train import train_loop
from fam_engine.jobs.journal import STATE_FOLDER
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


def trainer_of(model: object) -> fam_engine.Trainer:
    return fam_engine.Trainer(model, precision="fp32", device="cpu", rank=2, steps=1)


def kept(out: Path) -> dict[Path, bytes]:
    """Read the records a folder holds, by path below it."""
    files = (out / STATE_FOLDER / "given").rglob("*.jsonl")
    return {path.relative_to(out): path.read_bytes() for path in files}


def test_files_of_others_are_left_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "own"
    own = [out / "records" / name for name in ("records.jsonl", "validation.jsonl")]
    own[0].parent.mkdir(parents=True)
    for path in own:
        path.write_text("of somebody else")
    outcome = trainer_of(settings["model"]).train(
        make_records(6), out, validation=make_records(4, seed=1)
    )
    assert [path.read_text() for path in own] == ["of somebody else"] * 2
    assert {path.name for path in kept(out)} == {path.name for path in own}
    card = (outcome.adapter / "README.md").read_text()
    assert "- records.jsonl, SHA-256 `" in card
    assert STATE_FOLDER not in card


def test_a_call_that_is_refused_leaves_the_records_of_the_job(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    trainer, out = trainer_of(settings["model"]), tmp_path / "own"
    trainer.train(make_records(6), out)
    before = kept(out)
    (content,) = before.values()
    assert len(content.splitlines()) == 6
    with pytest.raises(UsageError, match="E_RESUME_MISMATCH"):
        trainer.train(make_records(3), out)
    # Under another name in the same folder, which the refusal must not take along.
    with pytest.raises(UsageError, match="E_RESUME_MISMATCH"):
        trainer.train(make_records(3), out, validation=make_records(6))
    assert kept(out) == before
    with pytest.raises(UsageError, match="E_RESUME_MISMATCH"):
        fam_engine.Trainer(settings["model"], rank=4).train(make_records(6), out)
    assert kept(out) == before


def test_a_call_that_finds_the_folder_in_use_leaves_the_records_of_the_job(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    trainer, out = trainer_of(settings["model"]), tmp_path / "own"
    trainer.train(make_records(6), out)
    before = kept(out)
    assert len(before) == 1
    with (out / STATE_FOLDER / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockedError):
            trainer.train(make_records(3), out)
    assert before.items() <= kept(out).items()


def test_a_folder_without_a_job_is_as_it_was_after_a_refusal(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "adapter").write_text("of somebody else")
    with pytest.raises(UsageError, match="E_OUT"):
        trainer_of(settings["model"]).train(make_records(6), tmp_path / "own")
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["adapter"]
    (tmp_path / "own" / "adapter").unlink()
    with pytest.raises(ModelRefusedError):
        trainer_of(tmp_path / "none").train(make_records(6), tmp_path / "own")
    assert not list((tmp_path / "own").iterdir())


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


def test_every_seed_that_is_taken_trains(settings: dict[str, Any], train: Train) -> None:
    assert train(seed=2**64 - 1, steps=1).summary["training"]["steps"] == 1
    with pytest.raises(UsageError, match="`seed`: Input should be less than 18446744073709551616"):
        fam_engine.Trainer(settings["model"], seed=2**64)
