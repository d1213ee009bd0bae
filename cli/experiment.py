"""`fam-engine experiment`: a YAML to a study, one call, the outcome printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

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
    if out is None:
        raise UsageError("--out is missing", code="E_USAGE", hint="give a folder")
    changes: dict[str, Any] = {"device": device, "download": download}

    from rich.console import Console

    from fam_engine.jobs.experiment.forecast import forecast_experiment
    from fam_engine.jobs.experiment.job import OUTPUTS, read_study, run_experiment
    from fam_engine.report.experiment_terminal import print_experiment, print_study_forecast
    from fam_engine.report.progress import JobProgress

    config = read_study(study, changes)
    with JobProgress(quiet=quiet) as progress:
        result = (
            forecast_experiment(config, out, progress)
            if dry_run
            else run_experiment(config, out, progress)
        )
    if as_json:
        print(json.dumps(result))
    elif dry_run:
        print_study_forecast(result, Console())
    else:
        print_experiment(result, Console())
        print(f"{out}: {', '.join(OUTPUTS)}, steps")
