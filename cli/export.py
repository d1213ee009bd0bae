"""`fam-engine export`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from fam_engine.cli import options
from fam_engine.errors import EXIT_BUG, EXIT_OK, EXIT_QUARANTINED

EPILOG = (
    "Examples: fam-engine export chosen/selected.jsonl --format axolotl --out chosen/axolotl.jsonl; "
    "fam-engine export --verify trained/adapter --model embedded"
)

_VERIFY = "An adapter"


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
        str | None,
        typer.Option(
            metavar=options.PATH, help="Output file, .jsonl.", rich_help_panel=options.RUN
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar=options.PATH,
            help="Instead: compare how this PEFT LoRA folder may be served with how it was trained.",
            rich_help_panel=_VERIFY,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="And with a server of OpenAI's completions, such as http://127.0.0.1:8000.",
            rich_help_panel=_VERIFY,
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="What the server calls it.", rich_help_panel=_VERIFY),
    ] = None,
    model: options.Model = None,
    precision: options.Precision = None,
    compute_dtype: options.ComputeDtype = None,
    device: options.Device = None,
    download: options.Download = None,
    template: options.Template = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    limit: options.Limit = None,
    map_: options.Map = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write records in the format of another trainer, or verify an adapter before it is published.

    Records are written to --out, and what the trainer must be told is printed.

    With --verify, answers (--data; default: 50 embedded ones) are scored over the weights the
    adapter was trained on (--precision), over 16-bit weights, merged both ways, and by --url.

    Exit codes: 0 done; 3 done, some records left out; 1 --verify found a difference beyond the
    stated tolerance.
    """
    given = options.settings_given(
        {**locals(), "data": [*(files or []), *(data or [])] or None, "format": format_}
    )
    del given["files"], given["format_"]
    if verify is not None:
        _verify(given, config, as_json=as_json, quiet=quiet)

    from fam_engine.config import ExportConfig
    from fam_engine.settings_reading import read_config

    options.check_flags(given, ExportConfig, "export without --verify")
    taken = {name: value for name, value in given.items() if name in ExportConfig.model_fields}
    settings = read_config(ExportConfig, taken, config)
    options.execute(settings, settings.out, _load, as_json=as_json, quiet=quiet)


def _load() -> options.Job:
    from fam_engine.jobs.exporting.job import run_export
    from fam_engine.report.exporting import print_export

    return options.Job(run_export, print_export, "a line a record")


def _verify(given: dict[str, Any], file: str | None, *, as_json: bool, quiet: bool) -> None:
    from fam_engine.config import VerifyConfig
    from fam_engine.settings_reading import read_config

    options.check_flags(given, VerifyConfig, "export --verify")
    taken = {name: value for name, value in given.items() if name in VerifyConfig.model_fields}
    config = read_config(VerifyConfig, taken, file)

    from rich.console import Console

    from fam_engine.jobs.verifying.job import run_verify
    from fam_engine.report.progress import JobProgress
    from fam_engine.report.verifying import print_verification

    with JobProgress(quiet=quiet) as progress:
        outcome = run_verify(config, progress)
    if as_json:
        print(json.dumps(outcome.summary))
    else:
        print_verification(outcome.summary, Console())
    if not outcome.summary["is_within"]:
        raise typer.Exit(EXIT_BUG)
    raise typer.Exit(EXIT_QUARANTINED if outcome.num_quarantined else EXIT_OK)
