"""`fam-engine score`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fam_engine.errors import EXIT_OK, EXIT_QUARANTINED, UsageError

EPILOG = "Example: fam-engine score --model embedded --data embedded --out demo-out"

_RUN = "Run"
_MODEL = "Model"
_DATA = "Data"
_WHAT = "What is measured"


def run(
    model: Annotated[
        str | None,
        typer.Option(help="Folder, hub id with --download, or `embedded`.", rich_help_panel=_MODEL),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="JSON Lines or Parquet, one or more.", rich_help_panel=_DATA),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder.", rich_help_panel=_RUN)] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="PEFT LoRA folder.", rich_help_panel=_MODEL)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Weights: nf4 (default), bf16, fp32.", rich_help_panel=_MODEL),
    ] = None,
    compute_dtype: Annotated[
        str | None, typer.Option(help="auto (default), bf16, fp32.", rich_help_panel=_MODEL)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (default), cpu, cuda.", rich_help_panel=_MODEL)
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Chat template: auto (default), none, FILE.", rich_help_panel=_DATA),
    ] = None,
    boundary: Annotated[
        str | None,
        typer.Option(
            help="separate (default), or joint: encode prompt and answer together.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    parse_special: Annotated[
        bool | None,
        typer.Option(
            "--parse-special", help="Special tokens in texts count.", rich_help_panel=_DATA
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest record, tokens.", rich_help_panel=_DATA)
    ] = None,
    on_long: Annotated[
        str | None,
        typer.Option(help="Longer ones: quarantine (default), cut-prompt.", rich_help_panel=_DATA),
    ] = None,
    max_tokens_per_batch: Annotated[
        int | None, typer.Option(help="Default: from free memory.", rich_help_panel=_RUN)
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
        int | None, typer.Option(help="Of the bootstrap intervals.", rich_help_panel=_RUN)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Read the first N records only.", rich_help_panel=_DATA)
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", help="field=column; repeat it.", rich_help_panel=_DATA),
    ] = None,
    download: Annotated[
        bool | None,
        typer.Option("--download", help="Fetch --model from the hub.", rich_help_panel=_MODEL),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of these settings.", rich_help_panel=_RUN)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would happen.", rich_help_panel=_RUN)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON.", rich_help_panel=_RUN)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Score how familiar each answer is to a model.

    Writes scores.parquet, summary.json, report.html and quarantine.jsonl into --out.

    A job that was stopped goes on when the same command is given again.
    """
    flags = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
    flags["map"] = _columns(map_) if map_ else None
    _run(flags, config, dry_run=dry_run, as_json=as_json, quiet=quiet)


_NOT_SETTINGS = ("config", "dry_run", "as_json", "quiet", "map_")


def _run(
    flags: dict[str, Any], file: Path | None, *, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    from fam_engine.config import ScoreConfig, read_config

    config = read_config(ScoreConfig, flags, file)

    from rich.console import Console

    from fam_engine.jobs.scoring.forecast import forecast_score
    from fam_engine.jobs.scoring.job import run_score
    from fam_engine.report.forecast import print_forecast
    from fam_engine.report.progress import JobProgress
    from fam_engine.report.terminal import print_summary

    with JobProgress(quiet=quiet) as progress:
        if dry_run:
            forecast = vars(forecast_score(config, progress))
            num_bad = sum(forecast["quarantined"].values())
        else:
            outcome = run_score(config, progress)
            num_bad = outcome.num_quarantined
    if as_json:
        print(json.dumps(forecast if dry_run else outcome.summary))
    elif dry_run:
        print_forecast(forecast, Console())
    else:
        codes = outcome.summary["records"]["quarantined_by_code"]
        print_summary(outcome.summary, codes, Console())
        print(f"{config.out}: scores.parquet, summary.json, report.html, quarantine.jsonl")
    raise typer.Exit(EXIT_QUARANTINED if num_bad else EXIT_OK)


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise UsageError(
                f"--map {pair}: expected field=column, such as response=output", code="E_USAGE"
            )
        columns[field] = column
    return columns
