"""An experiment from its YAML to its report.

In: an `ExperimentConfig`, an output folder and somebody to tell about progress. Out: `results.json`, `report.html`,
`report.md`, `plots/` and a folder a step. Whatever stops it, the same command goes on from there; what is finished is
never computed again, whichever YAML asked for it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fam_engine.config import nearest
from fam_engine.data.files import write_text_whole
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.experiment.analysis import analyse
from fam_engine.jobs.experiment.config import ExperimentConfig
from fam_engine.jobs.experiment.costs import predict_steps
from fam_engine.jobs.experiment.plan import Plan, check_files, plan_study
from fam_engine.jobs.experiment.progress import StudyProgress
from fam_engine.jobs.experiment.steps import run_steps
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal, check_unclaimed, storage_errors
from fam_engine.jobs.progress import Progress
from fam_engine.report.experiment import plot_files, render_html, render_markdown
from fam_engine.report.forecast import duration
from fam_engine.settings_reading import read_config

STUDIES = Path(__file__).parent / "studies"
OUTPUTS = ("results.json", "report.html", "report.md")
_PLOTS = "plots"


def find_study(name: str) -> Path:
    """Find a study: a YAML file, or the name of one that comes with the package.

    Raises:
        UsageError: There is none.
    """
    shipped = {file.stem: file for file in sorted(STUDIES.glob("*.yaml"))}
    file = shipped.get(name, Path(name))
    if not file.is_file():
        raise UsageError(
            f"`{name}` is neither a YAML file nor a study of ours{nearest(name, list(shipped))}",
            code="E_STUDY",
            hint=f"give a file, or one of {', '.join(shipped)}",
        )
    return file


def read_study(name: str, changes: dict[str, Any] | None = None) -> ExperimentConfig:
    """Read a study, see `find_study`.

    Raises:
        UsageError: There is none, or its settings do not fit.
    """
    return read_config(ExperimentConfig, changes or {}, find_study(name))


def run_experiment(config: ExperimentConfig, out: Path, progress: Progress) -> dict[str, Any]:
    """Run an experiment, or go on where an earlier run stopped.

    Returns:
        What `results.json` holds.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; what is done is kept.
    """
    check_unclaimed(out, (*OUTPUTS, _PLOTS))
    check_files(config, progress.note)
    plan = plan_study(config, out)
    minutes = config.budget.minutes
    shown = StudyProgress(progress)
    # The folder may hold steps of several studies; the lock keeps two runs apart.
    with (
        Interrupts() as interrupts,
        Journal(out, {"command": "experiment"}, ""),
        threads_set(config.threads),
    ):

        def check() -> None:
            interrupts.check()
            _check_references(config, plan)

        shown.expect({}, len(plan.steps))
        run_steps(plan.texts, shown, check)
        check()
        predicted = predict_steps(config, plan)
        shown.expect(predicted, len(plan.steps))
        budget = None if minutes is None else 60 * minutes
        _warn_of_time(plan, sum(predicted.values()), budget, shown)
        run_steps(plan.steps, shown, check, budget_seconds=budget)
        _check_references(config, plan)
        results = analyse(config, plan)
        with storage_errors(out):
            write_text_whole(
                out / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n"
            )
            write_text_whole(out / "report.html", render_html(results))
            write_text_whole(out / "report.md", render_markdown(results))
            (out / _PLOTS).mkdir(exist_ok=True)
            for name, svg in plot_files(results).items():
                write_text_whole(out / _PLOTS / name, svg)
    return results


@contextlib.contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Run torch on so many threads for a while; None: on as many as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_references(config: ExperimentConfig, plan: Plan) -> None:
    """Refuse a reference that is known to have no answers to train on; some are known only once a model read them."""
    for cell in plan.cells:
        if (reason := cell.why_dropped(config.reference)) is not None:
            raise InputError(
                f"the reference `{config.reference}` has no answers to `{cell.task}` to train on: {reason}",
                code="E_STUDY_REFERENCE",
                where=cell.label,
                hint="name another reference, or leave this model or task out",
            )


def _warn_of_time(plan: Plan, left: float, budget: float | None, shown: StudyProgress) -> None:
    spent = sum(step.seconds() or 0.0 for step in plan.steps)
    if budget is not None and spent + left > budget:
        shown.tell(
            f"about {duration(left)} to go, {duration(max(budget - spent, 0.0))} left of the time "
            "budget: the last seeds may be left out"
        )
