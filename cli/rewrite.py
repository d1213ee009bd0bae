"""`fam-engine rewrite`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

from typing import Annotated

import typer

from fam_engine.cli import options

EPILOG = (
    "Example: fam-engine rewrite --model embedded --data embedded --out rewritten --limit 20 "
    "--method answer --samples 2 --max-new-tokens 128"
)

_HOW = "How answers are rewritten"


def run(
    model: options.Model = None,
    data: options.Data = None,
    out: options.Out = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="rewrite (default): the given answer in the model's words; answer: its own answer; "
            "explain: an explanation from the final answer; minimum-change: its own answer, "
            "changed as little as possible where it is wrong.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            metavar=options.PATH,
            help="In place of the method's prompt: text with {{question}}, {{response}}, "
            "{{answer}}, {{attempt}}.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Attempts until a text is verified; the first is greedy. [4]", rich_help_panel=_HOW
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest text, tokens. [512]", rich_help_panel=_HOW)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of later attempts. [0.7]", rich_help_panel=_HOW)
    ] = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    adapter: options.Adapter = None,
    precision: options.Precision = None,
    compute_dtype: options.ComputeDtype = None,
    device: options.Device = None,
    template: options.Template = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    parse_special: options.ParseSpecial = None,
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
    """Let a model put given answers into its own words.

    A new text counts only if it is whole, gives the same final answer (the
    record's gold `answer` or `tests`; else what its response ends with),
    shows its working where that is asked for, and neither copies the given
    answer nor speaks of one. Records without such a text after --samples
    attempts keep the answer they came with.

    Writes rewritten.jsonl, candidates.parquet, summary.json and
    quarantine.jsonl into --out.

    A job that was stopped goes on when the same command is given again. The
    same record gets the same texts whatever else is in the data.
    """
    given = options.settings_given(locals())

    from fam_engine.config import RewriteConfig
    from fam_engine.settings_reading import read_config

    settings = read_config(RewriteConfig, given, config, dry_run=dry_run)
    options.execute(settings, settings.out, _load, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _load() -> options.Job:
    from fam_engine.jobs.rewriting.forecast import forecast_rewrite
    from fam_engine.jobs.rewriting.job import run_rewrite
    from fam_engine.report.rewriting import print_rewriting_forecast, print_rewriting_summary

    return options.Job(
        run_rewrite,
        print_rewriting_summary,
        "rewritten.jsonl, candidates.parquet, summary.json, quarantine.jsonl",
        options.forecasting(forecast_rewrite),
        print_rewriting_forecast,
    )
