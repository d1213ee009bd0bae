"""`fam-engine experiment`: a YAML to a study, one call, the outcome printed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fam_engine.cli import options
from fam_engine.errors import UsageError

EPILOG = "Example: fam-engine experiment small --out study"


def run(
    study: Annotated[str, typer.Argument(help="YAML file, or a study of ours: small, paper.")],
    out: options.Out = None,
    device: options.Device = None,
    download: options.Download = None,
    show: Annotated[
        bool,
        typer.Option(
            "--show",
            help="Print the YAML, to start one of your own from.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train on several variants of the same answers and compare what comes of it.

    Writes report.html, report.md, results.json and a folder for each step into --out.

    Steps that are finished are never computed again; a study that was stopped goes on when the same
    command is given again, and one that was changed computes what depends on the change.

    Every key of the YAML is in docs/experiment.md; `--show` prints a study of ours with comments.
    """
    if show:
        from fam_engine.jobs.experiment.job import find_study

        print(find_study(study).read_text(encoding="utf-8"), end="")
        return
    if out is None and not dry_run:
        raise UsageError("--out is missing", code="E_USAGE", hint="give a folder")
    from fam_engine.config import NOWHERE
    from fam_engine.jobs.experiment.job import read_study
    from fam_engine.settings_reading import given_path

    folder = NOWHERE if out is None else given_path(out, "out")
    config = read_study(study, {"device": device, "download": download})
    load = partial(_load, folder)
    options.execute(config, folder, load, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _load(out: Path) -> options.Job:
    from fam_engine.jobs.experiment.forecast import forecast_experiment
    from fam_engine.jobs.experiment.job import OUTPUTS, run_experiment
    from fam_engine.jobs.outcome import JobOutcome
    from fam_engine.report.experiment_terminal import print_experiment, print_study_forecast

    # What a step leaves out is told in its folder and its report.
    return options.Job(
        lambda config, progress: JobOutcome(run_experiment(config, out, progress), 0),
        print_experiment,
        f"{', '.join(OUTPUTS)}, steps",
        lambda config, progress: JobOutcome(forecast_experiment(config, out, progress), 0),
        print_study_forecast,
    )
