"""`fam-engine tokenize`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from fam_engine.cli import options
from fam_engine.errors import EXIT_BUG, EXIT_OK, EXIT_QUARANTINED

# A blank line between two lines, or help would join them.
EPILOG = "\n\n".join(
    (
        "Example: fam-engine tokenize embedded --model embedded",
        "1,000 of 1,000 records tokenized",
        "74,795 prompt and 124,477 response tokens, 1,000 of ends of turns",
        "254,660 bytes of responses, 0.489 tokens a byte",
    )
)

_PACKS = "Packs and checks"


def run(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="The same as --data.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model or tokenizer folder, hub id with --download, or `embedded`.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    data: options.Data = None,
    out: options.Out = None,
    template: options.Template = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    boundary: options.Boundary = None,
    parse_special: options.ParseSpecial = None,
    max_length: options.MaxLength = None,
    on_long: options.OnLong = None,
    capacity: Annotated[
        int | None, typer.Option(help="Tokens a pack. [2048]", rich_help_panel=_PACKS)
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify",
            help="Compare with the reference on these texts; a difference ends with code 1.",
            rich_help_panel=_PACKS,
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(help="Write token ids into --out: jsonl, parquet.", rich_help_panel=_PACKS),
    ] = None,
    limit: options.Limit = None,
    map_: options.Map = None,
    download: options.Download = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Count what records come to in tokens.

    Lengths, what --max-length would leave out, what is unusual, how full packs would be. No model
    computes. With --out it writes summary.json, quarantine.jsonl and, with --ids, the token ids.

    Exit codes: 0 done; 3 done, some records left out; 1 --verify found a difference.
    """
    settings = options.settings_given({**locals(), "data": [*(files or []), *(data or [])] or None})
    del settings["files"]
    _run(settings, config, as_json=as_json, quiet=quiet)


def _run(settings: dict[str, Any], file: str | None, *, as_json: bool, quiet: bool) -> None:
    from fam_engine.config import TokenizeConfig
    from fam_engine.settings_reading import read_config

    config = read_config(TokenizeConfig, settings, file)

    from rich.console import Console

    from fam_engine.jobs.tokenizing.job import run_tokenize
    from fam_engine.report.progress import JobProgress
    from fam_engine.report.tokenizing import print_tokenized

    with JobProgress(quiet=quiet) as progress:
        summary = run_tokenize(config, progress)
    if as_json:
        print(json.dumps(summary))
    else:
        print_tokenized(summary, Console())
        if config.out is not None:
            names = [f"ids.{config.ids}"] if config.ids else []
            print(f"{config.out}: {', '.join([*names, 'summary.json', 'quarantine.jsonl'])}")
    if config.verify and summary["verify"]["num_mismatched"]:
        raise typer.Exit(EXIT_BUG)
    raise typer.Exit(EXIT_QUARANTINED if summary["records"]["quarantined"] else EXIT_OK)
