"""Every fault at every call of every small job: `make faults-all`, hours; its figures go to `benchmarks/results/`.

`FAULTS_OUT` names the JSON file. Each trial is noted there when it is done, and what is noted for the same commit is
not done again: a sweep that was stopped goes on. A job's calls are met in turn until it ends before the one whose turn
it is, so that none is left out. `test_storage` and `test_kills` meet some of them at random.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fam_engine.data.files import write_text_whole
from fam_engine.jobs.bench.machine import describe_machine
from tests.faults.conftest import Whole
from tests.faults.small_jobs import SmallJob, smaller
from tests.faults.trials import FAULTS, meet

FIGURES = Path(os.environ.get("FAULTS_OUT", "benchmarks/results/faults_cpu.json"))
COMMANDS = ["score", "train", "generate", "rewrite", "eval", "experiment"]

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("command", COMMANDS)
def test_every_fault_at_every_call(
    jobs: dict[str, SmallJob],
    whole: Callable[[SmallJob], Whole],
    tmp_path: Path,
    command: str,
) -> None:
    job = smaller(jobs[command])
    undisturbed, found = whole(job), _figures(command)
    for fault in FAULTS:
        of_fault = found["faults"].setdefault(fault, {"calls": 0, "seconds": 0.0, "failures": []})
        while not of_fault.get("complete"):
            _meet_next(job, undisturbed, tmp_path, fault, of_fault)
            _keep(command, found)
    assert not any(of_fault["failures"] for of_fault in found["faults"].values())


def _figures(command: str) -> dict[str, Any]:
    """Give what an earlier sweep of this commit has found of a job."""
    environment = describe_machine("cpu", 1)
    found: dict[str, Any] = _kept().get(command, {"environment": environment})
    if found["environment"]["commit"] == environment["commit"]:
        return {"faults": {}, **found}
    return {"environment": environment, "faults": {}}


def _kept() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    return kept


def _keep(command: str, found: dict[str, Any]) -> None:
    write_text_whole(FIGURES, json.dumps({**_kept(), command: found}, indent=1) + "\n")


def _meet_next(
    job: SmallJob, whole: Whole, folder: Path, fault: str, of_fault: dict[str, Any]
) -> None:
    """Do the next trial and note what came of it."""
    number, began = of_fault["calls"] + 1, time.perf_counter()
    try:
        outcome: str = meet(job, whole, folder / f"{fault}-{number}", fault, number)
    except AssertionError as error:
        outcome = "failed"
        of_fault["failures"].append(f"call {number}: {error}")
    of_fault["seconds"] = round(of_fault["seconds"] + time.perf_counter() - began, 2)
    if outcome == "beyond":
        of_fault["complete"] = True
    else:
        of_fault["calls"] = number
        of_fault[outcome] = of_fault.get(outcome, 0) + 1
