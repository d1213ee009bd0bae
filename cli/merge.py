"""`fam-engine merge`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fam_engine.cli import options
from fam_engine.errors import EXIT_OK, EXIT_QUARANTINED

EPILOG = (
    "Example: fam-engine merge --model embedded --adapter trained/adapter --out merged "
    "--data embedded --limit 100"
)


def run(
    model: options.Model = None,
    adapter: options.Adapter = None,
    out: options.Out = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Added to: original (default) weights, or dequantized: NF4 and back.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    data: options.Data = None,
    precision: options.Precision = None,
    compute_dtype: options.ComputeDtype = None,
    device: options.Device = None,
    template: options.Template = None,
    limit: options.Limit = None,
    download: options.Download = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Merge an adapter into its model, as a plain checkpoint.

    With --data, prints the perplexity of those answers before and after: --precision is that of the
    model before, which the adapter was trained over; the merged one has 16-bit weights.
    """
    settings = options.settings_given(locals())
    _run(settings, config, as_json=as_json, quiet=quiet)


def _run(settings: dict[str, Any], file: Path | None, *, as_json: bool, quiet: bool) -> None:
    from fam_engine.config import MergeConfig, read_config

    config = read_config(MergeConfig, settings, file)

    from rich.console import Console

    from fam_engine.jobs.training.merge import run_merge
    from fam_engine.report.progress import JobProgress
    from fam_engine.report.training import print_merge_scores

    with JobProgress(quiet=quiet) as progress:
        outcome = run_merge(config, progress)
    if as_json:
        print(json.dumps(outcome.summary))
    else:
        if config.data:
            print_merge_scores(outcome.summary["scores"], Console())
        print(f"{config.out}: a plain checkpoint")
    raise typer.Exit(EXIT_QUARANTINED if outcome.num_quarantined else EXIT_OK)
