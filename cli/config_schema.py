"""`fam-engine config schema`: a command's name to the JSON Schema of its YAML, printed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

EPILOG = "Example: fam-engine config schema score > score.schema.json"

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Say what a command's YAML file may hold."""


@app.command(name="schema", epilog=EPILOG)
def run(
    command: Annotated[str, typer.Argument(help="score, train, experiment ...")],
) -> None:
    """Print the JSON Schema of a command's YAML (--config; the study of experiment)."""
    from fam_engine.jobs.schemas import settings_schema

    print(json.dumps(settings_schema(command), indent=2))
