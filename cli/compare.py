"""`fam-engine compare`: two folders to how their runs differ, printed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fam_engine.cli import options

EPILOG = "Example: fam-engine compare scores-base scores-tuned"


def run(
    run_a: Annotated[str, typer.Argument(help="The --out of a score or eval run, or its table.")],
    run_b: Annotated[str, typer.Argument(help="Another over the same records.")],
    seed: Annotated[
        int, typer.Option(help="Of the bootstrap intervals.", rich_help_panel=options.RUN)
    ] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Compare two score runs, or two eval runs, record by record.

    Records are joined by id, where it repeats by source, or by file and line.
    Differences are B minus A, paired, with intervals over questions.
    """
    from rich.console import Console

    from fam_engine.jobs.comparing.job import compare_runs
    from fam_engine.report.comparison import print_comparison
    from fam_engine.settings_reading import given_path

    comparison = compare_runs(given_path(run_a, "run_a"), given_path(run_b, "run_b"), seed=seed)
    if as_json:
        print(json.dumps(comparison))
    else:
        print_comparison(comparison, Console())
