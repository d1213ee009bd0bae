"""`fam-engine merge`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fam_engine.cli import options

if TYPE_CHECKING:
    from rich.console import Console

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
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    limit: options.Limit = None,
    download: options.Download = None,
    dry_run: options.DryRun = False,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Merge an adapter into its model, as a plain checkpoint.

    With --data, prints the perplexity of those answers before and after: --precision is that of the
    model before, which the adapter was trained over; the merged one has 16-bit weights.
    """
    given = options.settings_given(locals())

    from fam_engine.config import MergeConfig
    from fam_engine.settings_reading import read_config

    settings = read_config(MergeConfig, given, config, dry_run=dry_run)
    options.execute(settings, settings.out, _load, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _load() -> options.Job:
    from fam_engine.jobs.training.merge import forecast_merge, run_merge
    from fam_engine.report.training import print_merge_forecast, print_merge_scores

    def show(summary: Mapping[str, Any], console: Console) -> None:
        if summary["scores"]:
            print_merge_scores(summary["scores"], console)

    return options.Job(run_merge, show, "a plain checkpoint", forecast_merge, print_merge_forecast)
