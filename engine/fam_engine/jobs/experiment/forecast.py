"""The dry run: which steps there are, which are done, and what the others will cost.

In: an `ExperimentConfig` and the output folder. Out: a dictionary. Nothing is written there: texts that are not made
yet are made in a temporary folder, to count their tokens.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from fam_engine.jobs.experiment.config import ExperimentConfig
from fam_engine.jobs.experiment.costs import predict_steps
from fam_engine.jobs.experiment.plan import Plan, check_files, plan_study
from fam_engine.jobs.experiment.progress import StudyProgress
from fam_engine.jobs.experiment.steps import run_steps
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.progress import Progress


def forecast_experiment(config: ExperimentConfig, out: Path, progress: Progress) -> dict[str, Any]:
    """Foresee an experiment.

    Returns:
        `title`; `steps`: `kind`, `label`, `done`, `seconds` (taken, or predicted), `folder`;
        `seconds_done`, `seconds_left`; `budget_seconds`, or None.

    Raises:
        FamEngineError: As `run_experiment` would before its first model step.
    """
    check_files(config, progress.note)
    real = plan_study(config, out)
    with tempfile.TemporaryDirectory(prefix="fam-engine-") as name, Interrupts() as interrupts:
        trial = plan_study(config, Path(name))
        _take_over(real, trial)
        shown = StudyProgress(progress)
        shown.expect({}, len(trial.steps))
        run_steps(trial.texts, shown, interrupts.check)
        predicted = predict_steps(config, trial)
    steps = [
        {
            "kind": step.kind,
            "label": step.label,
            "done": step.is_done,
            "seconds": step.seconds() if step.is_done else predicted.get(step.key, 0.0),
            "folder": str(step.folder),
        }
        for step in real.steps
    ]
    minutes = config.budget.minutes
    return {
        "title": config.title,
        "steps": steps,
        "seconds_done": sum(step["seconds"] for step in steps if step["done"]),
        "seconds_left": sum(step["seconds"] for step in steps if not step["done"]),
        "budget_seconds": None if minutes is None else 60 * minutes,
    }


def _take_over(real: Plan, trial: Plan) -> None:
    """Copy what is known of finished steps: the small files that sizes and times are read from."""
    for done, copy in zip(real.steps, trial.steps, strict=True):
        if done.is_done:
            copy.folder.mkdir(parents=True)
            for name in ("step.json", "records.jsonl", "questions.jsonl"):
                if (done.folder / name).is_file():
                    shutil.copy(done.folder / name, copy.folder / name)
