from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from fam_engine.errors import CorruptStateError, UsageError
from fam_engine.jobs.training.log import NAME, StepReport, TrainingLog, read_log


def write(out: Path, first: int, stop: int, *, step: int) -> None:
    with TrainingLog(out, step=step, tensorboard=False) as log:
        for number in range(first, stop):
            log.write(StepReport(number, number / 2, loss=1.0 / number, tokens=number))


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, 1, 6, step=0)
    with (tmp_path / NAME).open("a") as file:
        file.write('{"step": 6, "lo')  # a dead process's last line
    write(tmp_path, 4, 8, step=3)
    lines = list(read_log(tmp_path / NAME))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert lines[3] == {"step": 4, "epoch": 2.0, "loss": 0.25, "tokens": 4, "seconds": 0.0}


def test_a_log_with_a_step_missing_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1, 4, step=0)
    with pytest.raises(CorruptStateError, match="every step up to 5"):
        TrainingLog(tmp_path, step=5, tensorboard=False)


def test_a_run_from_the_start_forgets_all(tmp_path: Path) -> None:
    write(tmp_path, 1, 6, step=0)
    write(tmp_path, 1, 2, step=0)
    assert [line["step"] for line in read_log(tmp_path / NAME)] == [1]


def test_a_number_json_has_not_is_left_out() -> None:
    report = StepReport(3, 1.0, loss=math.nan, grad_norm=math.inf, diverged="the loss is nan")
    assert report.line() == {
        "step": 3,
        "epoch": 1.0,
        "tokens": 0,
        "seconds": 0.0,
        "diverged": "the loss is nan",
    }


def test_tensorboard_is_an_extra_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"fam-engine\[tensorboard\]"):
        TrainingLog(tmp_path, step=0, tensorboard=True)


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TrainingLog(tmp_path, step=0, tensorboard=True) as log:
        log.write(StepReport(1, 0.5, loss=1.5, lr=0.1, tokens=7))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.5)]


def test_tensorboard_forgets_what_is_done_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, loss in ((0, 3.0), (0, 2.0), (1, 1.0)):
        with TrainingLog(tmp_path, step=start, tensorboard=True) as log:
            for step in range(start + 1 if start else 0, 3):
                log.write(StepReport(step, 1.0, validation_loss=loss))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("train/validation_loss")]
    assert found == [(0, 2.0), (1, 2.0), (2, 1.0)]
