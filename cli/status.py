"""`fam-engine status`: a folder to what it says about its job, printed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fam_engine.cli import options

EPILOG = "Example: fam-engine status demo-out"


def run(
    out: Annotated[str, typer.Argument(help="The --out of the job.")],
    as_json: options.AsJson = False,
) -> None:
    """Say how far a job is, whether it runs, and what to do to go on.

    For score, generate, rewrite, train, eval and experiment. It only reads, so it may be asked at any time.
    """
    from rich.console import Console

    from fam_engine.jobs.status.job import as_values, read_status
    from fam_engine.report.status import print_status
    from fam_engine.settings_reading import given_path

    status = as_values(read_status(given_path(out, "out")))
    if as_json:
        print(json.dumps(status))
    else:
        print_status(status, Console())
