"""`fam-engine doctor`: a device, a model and an adapter to what this machine can do, printed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fam_engine.cli import options

EPILOG = "Example: fam-engine doctor --model embedded"


def run(
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or `embedded`: would it be accepted?", rich_help_panel=options.MODEL
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar=options.PATH,
            help="PEFT LoRA folder: would PEFT, vLLM, llama.cpp and --model accept it?",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Say what is installed, what this machine has, which paths would be used, and what is missing.

    Ends with exit code 8 if --device cuda cannot be used, 10 if the model or the adapter is refused.
    """
    from fam_engine.config import DoctorConfig
    from fam_engine.settings_reading import read_config

    given = {"model": model, "adapter": adapter, "device": device}
    config = read_config(DoctorConfig, given, None)

    from rich.console import Console

    from fam_engine.jobs.doctor.job import examine
    from fam_engine.report.doctor import print_checks

    diagnosis = examine(device=config.device, model=config.model, adapter=config.adapter)
    checks = [vars(check) for check in diagnosis.checks]
    if as_json:
        print(json.dumps({"checks": checks, "exit_code": diagnosis.exit_code}))
    else:
        print_checks(checks, Console())
    raise typer.Exit(diagnosis.exit_code)
