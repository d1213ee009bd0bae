"""`fam-engine generate`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fam_engine.cli import options
from fam_engine.errors import EXIT_OK, EXIT_QUARANTINED

EPILOG = (
    "Example: fam-engine generate --model embedded --data embedded --out generated --limit 16 "
    "--max-new-tokens 128"
)

_TEXTS = "Texts"


def run(
    model: options.Model = None,
    data: options.Data = None,
    out: options.Out = None,
    adapter: options.Adapter = None,
    precision: options.Precision = None,
    compute_dtype: options.ComputeDtype = None,
    device: options.Device = None,
    template: options.Template = None,
    parse_special: options.ParseSpecial = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest prompt and answer together, tokens.", rich_help_panel=options.DATA
        ),
    ] = None,
    on_long: options.OnLong = None,
    samples: Annotated[
        int | None, typer.Option(help="Answers to each record. [1]", rich_help_panel=_TEXTS)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, tokens. [256]", rich_help_panel=_TEXTS)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0: the likeliest token. [0]", rich_help_panel=_TEXTS)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Only the likeliest tokens with this probability together. [1]",
            rich_help_panel=_TEXTS,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Only so many likeliest tokens; 0: all. [0]", rich_help_panel=_TEXTS),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="A string that ends an answer, not part of it; repeat it.", rich_help_panel=_TEXTS
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="`source` of the records. [the model's name]", rich_help_panel=_TEXTS),
    ] = None,
    max_slots: Annotated[
        int | None,
        typer.Option(
            help="Most answers at a time; fewer if memory is short. [64]",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the random choices.", rich_help_panel=options.RUN)
    ] = None,
    limit: options.Limit = None,
    map_: options.Map = None,
    download: options.Download = None,
    config: options.Config = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Let a model answer the records' prompts.

    Writes generated.jsonl, summary.json and quarantine.jsonl into --out. Answers in the data are not
    read; where a record has a gold `answer` or `tests`, the new answers are marked correct or not.

    A job that was stopped goes on when the same command is given again. The same record gets the same
    answers whatever else is in the data.
    """
    # Flags that may be repeated come as an empty list when they are not given.
    settings = {**options.settings_given(locals()), "stop": stop or None}
    _run(settings, config, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _run(
    settings: dict[str, Any], file: Path | None, *, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    from fam_engine.config import GenerateConfig, read_config

    config = read_config(GenerateConfig, settings, file)

    from rich.console import Console

    from fam_engine.jobs.generation.forecast import forecast_generate
    from fam_engine.jobs.generation.job import run_generate
    from fam_engine.report.generation import print_generation_forecast, print_generation_summary
    from fam_engine.report.progress import JobProgress

    with JobProgress(quiet=quiet) as progress:
        if dry_run:
            result = vars(forecast_generate(config, progress))
            num_bad = sum(result["quarantined"].values())
        else:
            outcome = run_generate(config, progress)
            result, num_bad = outcome.summary, outcome.num_quarantined
    if as_json:
        print(json.dumps(result))
    elif dry_run:
        print_generation_forecast(result, Console())
    else:
        print_generation_summary(result, Console())
        print(f"{config.out}: generated.jsonl, summary.json, quarantine.jsonl")
    raise typer.Exit(EXIT_QUARANTINED if num_bad else EXIT_OK)
