from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fam_engine.errors import CorruptStateError, StorageError, UsageError
from fam_engine.jobs.training.checkpoints import ADAPTER_FILE, Checkpoints, RunState
from fam_engine.jobs.training.optim import OptimizerState


def save(checkpoints: Checkpoints, step: int, best: int | None = None) -> None:
    state = RunState(step=step, max_tokens_per_batch=64, recent_nll=(1.5, 0.1), best_step=best)
    optimizer = OptimizerState({"a::exp_avg": torch.full((3,), step / 7)}, {"a::step": step})

    def write(folder: Path) -> None:
        save_file({"a": torch.full((4,), step / 3)}, folder / ADAPTER_FILE)

    checkpoints.save(state, optimizer, write)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_a_checkpoint_reads_back_as_it_was(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, "run"), 5, best=3)
    found = Checkpoints(tmp_path, "run").latest(pytest.fail)
    assert found is not None
    assert found.state == RunState(
        step=5, max_tokens_per_batch=64, recent_nll=(1.5, 0.1), best_step=3
    )
    assert torch.equal(found.parameters["a"], torch.full((4,), 5 / 3))
    assert torch.equal(found.optimizer.tensors["a::exp_avg"], torch.full((3,), 5 / 7))
    assert found.optimizer.numbers == {"a::step": 5}
    assert Checkpoints(tmp_path / "none", "run").latest(pytest.fail) is None


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run")
    for step in (9, 10, 11, 100):  # by number, not by name
        save(checkpoints, step, best=9)
    assert steps(tmp_path) == [9, 11, 100]
    save(checkpoints, 101, best=101)
    assert steps(tmp_path) == [100, 101]


def test_a_crash_while_saving_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run")
    save(checkpoints, 1)

    def full(folder: Path) -> None:
        (folder / ADAPTER_FILE).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space"):
        checkpoints.save(RunState(2, 64), OptimizerState({}, {}), full)
    assert steps(tmp_path) == [1]
    (tmp_path / ".step-2.partial").mkdir()  # what a kill would leave
    found = Checkpoints(tmp_path, "run").latest(pytest.fail)
    assert found is not None
    assert found.state.step == 1
    assert steps(tmp_path) == [1]


def test_any_byte_changed_is_found_and_the_one_before_taken(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "whole", "run")
    save(checkpoints, 1)
    save(checkpoints, 2)
    rng = random.Random(0)
    files = sorted((tmp_path / "whole" / "step-2").iterdir())
    assert len(files) == 4
    for trial, file in enumerate(files * 8):
        folder = tmp_path / f"trial-{trial}"
        shutil.copytree(tmp_path / "whole", folder)
        damaged = folder / "step-2" / file.name
        content = bytearray(damaged.read_bytes())
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
        if json_of(bytes(content)) == json_of(damaged.read_bytes()):
            continue  # a blank in another place changes nothing
        damaged.write_bytes(content)
        notes: list[str] = []
        found = Checkpoints(folder, "run").latest(notes.append)
        assert found is not None, (file, place)
        assert found.state.step == 1, (file, place)
        assert len(notes) == 1
        assert "step-2" in notes[0]


def json_of(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return content


def test_with_none_whole_the_run_stops(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, "run"), 1)
    (tmp_path / "step-1" / "state.json").unlink()
    with pytest.raises(CorruptStateError, match="not one checkpoint reads back") as caught:
        Checkpoints(tmp_path, "run").latest(lambda _: None)
    assert caught.value.exit_code == 7


def test_a_best_checkpoint_that_cannot_be_taken_names_the_ways_out(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run")
    save(checkpoints, 1, best=1)
    adapter, ways_out = tmp_path / "step-1" / ADAPTER_FILE, "(put back what was there; or take "
    whole = adapter.read_bytes()
    for spoil, said in (
        (lambda: adapter.write_bytes(whole + b"x"), f"`{ADAPTER_FILE}` is not what was written"),
        (adapter.unlink, f"`{ADAPTER_FILE}` does not exist"),
        (lambda: (tmp_path / "step-1" / "manifest.json").unlink(), "`manifest.json` does not read"),
        (lambda: shutil.rmtree(tmp_path / "step-1"), "the folder does not exist"),
    ):
        spoil()
        with pytest.raises(CorruptStateError) as caught:
            checkpoints.parameters(1)
        line = str(caught.value)
        assert f"step-1: the best checkpoint cannot be taken: {said}" in line
        assert ways_out in line


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, "run"), 1)
    with pytest.raises(UsageError, match="belongs to another run"):
        Checkpoints(tmp_path, "other").latest(pytest.fail)
