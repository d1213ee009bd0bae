"""A job by two real processes: what it comes to, and what is said and kept when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fam_engine.config import TrainConfig
from fam_engine.errors import DeviceError, DivergedError, UsageError
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.training import processes
from fam_engine.jobs.training.job import run_train
from fam_engine.jobs.training.processes import Child
from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import Notes, read_lines

ADAPTER = "adapter/adapter_model.safetensors"
# Dropout's masks follow from the micro-batches, which depend on the number of processes.
SETTINGS = {"dropout": 0.0, "validation_share": 0.2, "validate_every": 3, "save_every": 2}


class _At(Notes):
    """Does something to the processes at a step."""

    def __init__(self, step: int, number: int, monkeypatch: pytest.MonkeyPatch, who: int) -> None:
        super().__init__()
        self._step, self._number, self._who = step, number, who
        self._children: list[Child] = []
        start = processes.start_child

        def recorded(*arguments: Any, **named: Any) -> Child:  # noqa: ANN401 - passed on
            self._children.append(start(*arguments, **named))
            return self._children[-1]

        monkeypatch.setattr(processes, "start_child", recorded)

    def advance(self, count: int, detail: str = "") -> None:
        if detail.startswith(f"step {self._step}/"):
            pid = os.getpid() if self._who < 0 else self._children[self._who].pid
            os.kill(pid, self._number)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_lines(out / "log.jsonl") if line["step"]]


def test_two_processes_train_as_one_and_survive_kills_and_signals(
    train: Train, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, parts = (tmp_path / name for name in ("one", "two", "parts"))
    train(out=one, **SETTINGS)
    summary = train(out=two, nproc=2, **SETTINGS).summary
    assert summary["performance"]["num_processes"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    config = TrainConfig(**(settings | SETTINGS | {"out": parts, "nproc": 2}))
    died = "process 2 of 2 died: it was killed"
    with monkeypatch.context() as patch, pytest.raises(DeviceError, match=died) as caught:
        run_train(config, _At(3, signal.SIGKILL, patch, who=1))
    assert caught.value.code == "E_PROCESS"
    assert (parts / "checkpoints" / "step-2").is_dir()
    assert not (parts / "adapter").exists()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        run_train(config, _At(4, signal.SIGTERM, patch, who=-1))
    assert len(losses(parts)) >= 4
    run_train(config, Notes())
    assert losses(parts) == losses(two)
    assert (parts / ADAPTER).read_bytes() == (two / ADAPTER).read_bytes()


def test_another_number_of_processes_goes_on(
    train: Train, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(**(settings | SETTINGS | {"nproc": 2}))
    with monkeypatch.context() as patch, pytest.raises(DeviceError):
        run_train(config, _At(3, signal.SIGKILL, patch, who=0))
    assert train(**SETTINGS).summary["training"]["steps"] == 7
    assert [line["step"] for line in read_lines(settings["out"] / "log.jsonl")] == list(range(8))


def test_what_a_process_dies_of_is_told_in_its_own_words() -> None:
    message = ["error", "DivergedError", "the loss is nan", "E_DIVERGED", "step 3", "start anew"]
    with pytest.raises(DivergedError, match=r"E_DIVERGED\] step 3: the loss is nan \(start anew"):
        processes._pass_on(message, 1, Notes())
    with pytest.raises(RuntimeError, match="KeyError: 'x'") as caught:
        processes._pass_on(["bug", "KeyError: 'x'", "Traceback ..."], 1, Notes())
    assert caught.value.__notes__ == ["Traceback ..."]
    notes = Notes()
    processes._pass_on(["note", "a"], 0, notes)
    processes._pass_on(["note", "b"], 1, notes)
    assert notes.notes == ["a"]


def test_torchrun_starts_the_processes_itself(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UsageError, match="leave out --nproc"):
        train(nproc=2)


def test_torchrun_trains_the_same(train: Train, settings: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    values = settings | SETTINGS | {"out": str(tmp_path / "torchrun"), "steps": 2}
    config.write_text(json.dumps(values))
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fam_engine.cli.main", "train", "--config", str(config), "--json", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["performance"]["num_processes"] == 2
    train(steps=2, **SETTINGS)
    assert losses(tmp_path / "torchrun") == pytest.approx(losses(settings["out"]), rel=1e-5)
