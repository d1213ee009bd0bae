"""`fam-engine score`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fam_engine.cli import options

if TYPE_CHECKING:
    from fam_engine.jobs.outcome import JobOutcome

EPILOG = "Example: fam-engine score --model embedded --data embedded --out demo-out"

_WHAT = "What is measured"
_MANY = "Many workers"


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
    boundary: options.Boundary = None,
    parse_special: options.ParseSpecial = None,
    max_length: options.MaxLength = None,
    on_long: options.OnLong = None,
    max_tokens_per_batch: options.MaxTokensPerBatch = None,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact",
            help="On a GPU too, the same bits with any other records.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    tokens: Annotated[
        bool | None,
        typer.Option("--tokens", help="Also write tokens.parquet.", rich_help_panel=_WHAT),
    ] = None,
    ifd: Annotated[
        bool | None,
        typer.Option("--ifd", help="Also instruction-following difficulty.", rich_help_panel=_WHAT),
    ] = None,
    in_context: Annotated[
        int | None,
        typer.Option(help="Also after K correct answers to others.", rich_help_panel=_WHAT),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the bootstrap intervals.", rich_help_panel=options.RUN),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Do share I of N, as 1/4; the rest elsewhere.", rich_help_panel=_MANY),
    ] = None,
    launcher: Annotated[
        str | None,
        typer.Option(help="Start the workers: local, ray.", rich_help_panel=_MANY),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="How many. [one a GPU]", rich_help_panel=_MANY),
    ] = None,
    limit: options.Limit = None,
    map_: options.Map = None,
    download: options.Download = None,
    config: options.Config = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Score how familiar each answer is to a model.

    Writes scores.parquet, summary.json, report.html and quarantine.jsonl into --out.

    A job that was stopped goes on when the same command is given again. Many workers share one with --launcher, or with
    --shard wherever they run: then the same command without --shard ends it.
    """
    given = options.settings_given(locals())

    from fam_engine.config import ScoreConfig
    from fam_engine.settings_reading import read_config

    settings = read_config(ScoreConfig, given, config, dry_run=dry_run)
    options.execute(
        settings,
        settings.out,
        _load_shard if settings.shard else lambda: _load(settings.launcher),
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
    )


def _load(launcher: str | None) -> options.Job:
    from fam_engine.jobs.scoring.forecast import forecast_score
    from fam_engine.report.forecast import print_forecast
    from fam_engine.report.terminal import print_summary

    return options.Job(
        _runner(launcher),
        lambda summary, console: print_summary(
            summary, summary["records"]["quarantined_by_code"], console
        ),
        "scores.parquet, summary.json, report.html, quarantine.jsonl",
        options.forecasting(forecast_score),
        print_forecast,
    )


def _runner(launcher: str | None) -> Callable[[Any, Any], JobOutcome]:
    if launcher == "local":
        from fam_engine.jobs.scoring.sharing.local import run_local

        return run_local
    if launcher == "ray":
        from fam_engine.jobs.scoring.sharing.on_ray import run_on_ray

        return run_on_ray
    from fam_engine.jobs.scoring.job import run_score

    return run_score


def _load_shard() -> options.Job:
    from fam_engine.jobs.scoring.forecast import forecast_score
    from fam_engine.jobs.scoring.sharing.worker import run_shard
    from fam_engine.report.forecast import print_forecast
    from fam_engine.report.terminal import print_shard

    return options.Job(
        run_shard,
        print_shard,
        "parts of a job; the same command without --shard ends it",
        options.forecasting(forecast_score),
        print_forecast,
    )
