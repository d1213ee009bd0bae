"""A job by two real processes: what it comes to, and what is said and kept when one of them dies."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fam_engine.config import TrainConfig
from fam_engine.data import children
from fam_engine.data.children import start_child
from fam_engine.errors import DeviceError, DivergedError, UsageError
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.training import processes
from fam_engine.jobs.training.job import run_train
from fam_engine.jobs.training.processes import Child
from tests.jobs.training.conftest import Train
from tests.jobs.training.small_job import Notes, read_lines

# So many that a signal sent at one of the first arrives before the last.
STEPS = 60
ADAPTER = "adapter/adapter_model.safetensors"
# Dropout's masks follow from the micro-batches, which depend on the number of processes.
SETTINGS = {
    "dropout": 0.0,
    "validation_share": 0.2,
    "validate_every": 9,
    "save_every": 2,
    "steps": STEPS,
}


class _From(Notes):
    """Sends a signal to a process once a step is done: the number-th worker, or (None) the one that watches."""

    def __init__(self, step: int, number: int, who: int | None = None) -> None:
        super().__init__()
        self._step, self._number, self._who = step, number, who
        self.children: list[Child] = []

    def advance(self, count: int, detail: str = "") -> None:
        found = re.match(r"step (\d+)/", detail)
        if found and int(found[1]) >= self._step:
            self._step = STEPS + 1
            os.kill(
                os.getpid() if self._who is None else self.children[self._who].pid, self._number
            )

    def start_child(self, *arguments: Any, **named: Any) -> Child:  # noqa: ANN401 - passed on
        self.children.append(start_child(*arguments, **named))
        return self.children[-1]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_lines(out / "log.jsonl") if line["step"]]


def test_two_processes_train_as_one_and_survive_kills_and_signals(
    train: Train, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, parts, alone = (tmp_path / name for name in ("one", "two", "parts", "alone"))
    train(out=one, **SETTINGS)
    summary = train(out=two, nproc=2, **SETTINGS).summary
    assert summary["performance"]["num_processes"] == 2
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    # Later ones differ by what rounding has grown to.
    assert losses(two)[:7] == pytest.approx(losses(one)[:7], rel=1e-5)

    config = TrainConfig(**(settings | SETTINGS | {"out": parts, "nproc": 2}))
    killer = _From(3, signal.SIGKILL, who=1)
    monkeypatch.setattr(children, "start_child", killer.start_child)
    with pytest.raises(DeviceError, match="process 2 of 2 died: it was killed") as caught:
        run_train(config, killer)
    assert (caught.value.code, caught.value.exit_code) == ("E_PROCESS", 8)
    assert all(child.poll() is not None for child in killer.children)
    assert list((parts / "checkpoints").glob("step-*"))
    assert not (parts / "adapter").exists()
    shutil.copytree(parts, alone)

    with pytest.raises(Interrupted):
        run_train(config, _From(20, signal.SIGTERM))
    # A checkpoint of the moment: every step in the log is in it.
    newest = max(int(path.name[5:]) for path in (parts / "checkpoints").glob("step-*"))
    assert 20 <= newest == len(losses(parts)) < STEPS
    run_train(config, Notes())
    assert losses(parts) == losses(two)
    assert (parts / ADAPTER).read_bytes() == (two / ADAPTER).read_bytes()

    # Another number of processes goes on from the same checkpoint.
    train(out=alone, **SETTINGS)
    assert len(losses(alone)) == STEPS
    assert losses(alone)[:2] == losses(two)[:2]


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
    train(**(SETTINGS | {"steps": 2}))
    assert losses(tmp_path / "torchrun") == pytest.approx(losses(settings["out"]), rel=1e-5)
