"""`fam-engine bench`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from fam_engine.cli import options
from fam_engine.errors import EXIT_OK, EXIT_SLOWER

EPILOG = "Example: fam-engine bench tokenize score --out before.json"

_MEASURE = "Measuring"


def run(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(help="tokenize, pack, score, train-step, generate; none: all of them."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder, hub id with --download, or `embedded` (default).",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    precision: options.Precision = None,
    compute_dtype: options.ComputeDtype = None,
    device: options.Device = None,
    download: options.Download = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Records a run works on. [64]", rich_help_panel=_MEASURE),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Runs that count. [5]", rich_help_panel=_MEASURE)
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Runs before them. [1]", rich_help_panel=_MEASURE)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Of torch; default: its own choice.", rich_help_panel=_MEASURE),
    ] = None,
    max_tokens_per_batch: options.MaxTokensPerBatch = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar=options.PATH, help="An earlier --out to compare with.", rich_help_panel=_MEASURE
        ),
    ] = None,
    max_slowdown: Annotated[
        float | None,
        typer.Option(
            help="Share of the speed that may be lost before the exit code is 11. [0.1]",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar=options.PATH, help="JSON file for the result.", rich_help_panel=options.RUN
        ),
    ] = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how fast this machine is, on real answers that come with the package.

    Each workload runs in a process of its own. With --compare the exit code is 11 if one of them
    has become slower than --max-slowdown allows.
    """
    settings = options.settings_given(locals())
    settings["workloads"] = workloads or None
    _run(settings, config, as_json=as_json, quiet=quiet)


def _run(settings: dict[str, Any], file: str | None, *, as_json: bool, quiet: bool) -> None:
    from fam_engine.config import BenchConfig
    from fam_engine.settings_reading import read_config

    config = read_config(BenchConfig, settings, file)

    from rich.console import Console

    from fam_engine.jobs.bench.job import run_bench
    from fam_engine.measure.timing import slower
    from fam_engine.report.bench import print_bench
    from fam_engine.report.progress import JobProgress

    with JobProgress(quiet=quiet) as progress:
        outcome = run_bench(config, progress)
    if as_json:
        changes = [vars(change) for change in outcome.changes]
        print(json.dumps({**outcome.result, "changes": changes}))
    else:
        print_bench(outcome.result, outcome.changes, Console())
    raise typer.Exit(EXIT_SLOWER if slower(outcome.changes) else EXIT_OK)
