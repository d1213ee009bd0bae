"""`fam-engine generate`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

from typing import Annotated

import typer

from fam_engine.cli import options

EPILOG = (
    "Example: fam-engine generate --model embedded --data embedded --out generated --limit 16 "
    "--max-new-tokens 128"
)


def run(
    model: options.Model = None,
    data: options.Data = None,
    out: options.Out = None,
    adapter: options.Adapter = None,
    precision: options.Precision = None,
    compute_dtype: options.ComputeDtype = None,
    device: options.Device = None,
    template: options.Template = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    parse_special: options.ParseSpecial = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest prompt and answer together, tokens.", rich_help_panel=options.DATA
        ),
    ] = None,
    on_long: options.OnLong = None,
    samples: Annotated[
        int | None, typer.Option(help="Answers to each record. [1]", rich_help_panel=options.TEXTS)
    ] = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    stop: options.Stop = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="`source` of the records; default: the model's name.",
            rich_help_panel=options.TEXTS,
        ),
    ] = None,
    max_slots: options.MaxSlots = None,
    seed: options.Seed = None,
    limit: options.Limit = None,
    map_: options.Map = None,
    download: options.Download = None,
    config: options.Config = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Let a model answer the records' prompts.

    Writes generated.jsonl, summary.json and quarantine.jsonl into --out. Where a record has a gold
    `answer` or `tests`, or beside its `question` an answer that ends in a final one, the new answers
    are marked correct or not.

    A job that was stopped goes on when the same command is given again. The same record gets the same
    answers whatever else is in the data.
    """
    given = options.settings_given(locals())

    from fam_engine.config import GenerateConfig
    from fam_engine.settings_reading import read_config

    settings = read_config(GenerateConfig, given, config, dry_run=dry_run)
    options.execute(settings, settings.out, _load, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _load() -> options.Job:
    from fam_engine.jobs.generation.forecast import forecast_generate
    from fam_engine.jobs.generation.job import run_generate
    from fam_engine.report.generation import print_generation_forecast, print_generation_summary

    return options.Job(
        run_generate,
        print_generation_summary,
        "generated.jsonl, summary.json, quarantine.jsonl",
        options.forecasting(forecast_generate),
        print_generation_forecast,
    )
