"""What an interrupted command says of the next one is so."""

from __future__ import annotations

import importlib
import signal
from pathlib import Path

import pytest

from fam_engine.jobs.interrupts import Interrupted
from tests.cli.conftest import COMMANDS, Line, Run

# Where each command's job is looked up when it is run.
JOBS = {
    "score": "scoring.job.run_score",
    "generate": "generation.job.run_generate",
    "rewrite": "rewriting.job.run_rewrite",
    "train": "training.job.run_train",
    "eval": "evaluation.job.run_eval",
    "tokenize": "tokenizing.job.run_tokenize",
    "select": "selection.job.run_select",
}


def interrupted(monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    def job_of(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGINT)

    module, _, name = f"fam_engine.jobs.{job}".rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    monkeypatch.setattr(f"{module}.{name}", job_of)


@pytest.mark.parametrize("command", COMMANDS)
def test_only_what_goes_on_is_said_to_go_on(
    run: Run, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    interrupted(monkeypatch, JOBS[command])
    code, _, errors = run(*line(command, tmp_path / "out"))
    assert code == 130
    then = "start over" if command in ("tokenize", "select") else "go on from here"
    assert errors == f"interrupted by SIGINT; run the same command again to {then}\n"


def test_a_forecast_starts_over(run: Run, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, "scoring.forecast.forecast_score")
    code, _, errors = run(*line("score", None), "--dry-run")
    assert (code, errors.rpartition(" again ")[2]) == (130, "to start over\n")
