"""`fam-engine export`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from fam_engine.cli import options

EPILOG = (
    "Example: fam-engine export chosen/selected.jsonl --format axolotl --out chosen/axolotl.jsonl"
)


def run(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="The same as --data.")
    ] = None,
    data: options.Data = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="trl, axolotl, llama-factory.", rich_help_panel=options.DATA),
    ] = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Output file, .jsonl.", rich_help_panel=options.RUN),
    ] = None,
    limit: options.Limit = None,
    map_: options.Map = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write records in the format of another trainer, and print what it must be told.

    Exit codes: 0 done; 3 done, some records left out.
    """
    given = options.settings_given(
        {**locals(), "data": [*(files or []), *(data or [])] or None, "format": format_}
    )
    del given["files"], given["format_"]

    from fam_engine.config import ExportConfig, read_config

    settings = read_config(ExportConfig, given, config)
    options.execute(settings, settings.out, _load, as_json=as_json, quiet=quiet)


def _load() -> options.Job:
    from fam_engine.jobs.exporting.job import run_export
    from fam_engine.report.exporting import print_export

    return options.Job(run_export, print_export, "a line a record")
