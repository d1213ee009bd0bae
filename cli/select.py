"""`fam-engine select`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fam_engine.cli import options
from fam_engine.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from fam_engine.config import SelectConfig
    from fam_engine.report.progress import JobProgress

EPILOG = "Example: fam-engine select --data embedded --scores demo-out/scores.parquet --out chosen"

_CHOICE = "What is chosen"
_LIMITS = "Within which limits"


def run(
    data: options.Data = None,
    scores: Annotated[
        str | None,
        typer.Option(
            metavar=options.PATH,
            help="scores.parquet of a `score` run.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    out: options.Out = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="perplexity (default), bits_per_byte, rank_surprisal_ratio, ifd, "
            "in_context_perplexity, nll_sum (minus the log-prob), nll_mean ...",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(
            help="question (default): the first answer to each; source: one whole source; all.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(help="lowest, highest; default: the familiar end.", rich_help_panel=_CHOICE),
    ] = None,
    band: Annotated[
        str | None,
        typer.Option(
            help="LOW:HIGH, quantiles to keep, such as 0.25:0.75.", rich_help_panel=_CHOICE
        ),
    ] = None,
    correct_only: Annotated[
        bool | None,
        typer.Option("--correct-only", help="Only what is known correct.", rich_help_panel=_LIMITS),
    ] = None,
    min_tokens: Annotated[
        int | None, typer.Option(help="Shortest response, tokens.", rich_help_panel=_LIMITS)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest response, tokens.", rich_help_panel=_LIMITS)
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(help="SOURCE=N, at most so many; repeat it.", rich_help_panel=_LIMITS),
    ] = None,
    max_share: Annotated[
        float | None,
        typer.Option(help="Largest share of any source, such as 0.5.", rich_help_panel=_LIMITS),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="At most N records.", rich_help_panel=_LIMITS)
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="Test file to warn of; repeat it.", rich_help_panel=options.DATA),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of intervals and random order.", rich_help_panel=options.RUN),
    ] = None,
    limit: options.Limit = None,
    map_: options.Map = None,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar=options.PATH,
            help="Judge metrics on a CSV of known accuracies instead: columns model, task, "
            "variant, accuracy, and one a metric.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    config: options.Config = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Choose answers to train on, by their scores.

    Writes selected.jsonl, dropped.parquet, summary.json and quarantine.jsonl into --out.

    Every metric's familiar end is its lowest value, but for top1_rate and margin_mean. --pick and
    --band take others.
    """
    given = options.settings_given(locals())
    if replay is not None:
        _replay(given, config, as_json=as_json)
        return
    if quota:
        given["quota"] = _quotas(quota)

    from fam_engine.config import SelectConfig
    from fam_engine.settings_reading import read_config

    settings = read_config(SelectConfig, given, config, dry_run=dry_run)
    options.execute(settings, settings.out, _load, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _load() -> options.Job:
    from fam_engine.jobs.outcome import JobOutcome
    from fam_engine.jobs.selection.job import OUTPUTS, run_select
    from fam_engine.report.selection import print_selection

    def select(settings: SelectConfig, progress: JobProgress, *, dry_run: bool) -> JobOutcome:
        summary = run_select(settings, progress, dry_run=dry_run)
        return JobOutcome(summary, summary["records"]["quarantined"])

    def show_dry(summary: Mapping[str, Any], console: Console) -> None:
        print_selection(summary, console)
        print("nothing written")

    return options.Job(
        partial(select, dry_run=False),
        print_selection,
        ", ".join(OUTPUTS),
        partial(select, dry_run=True),
        show_dry,
    )


def _replay(settings: dict[str, Any], file: str | None, *, as_json: bool) -> None:
    from fam_engine.config import ReplayConfig
    from fam_engine.settings_reading import read_config

    options.check_flags(settings, ReplayConfig, "--replay judges a ledger and")
    config = read_config(ReplayConfig, settings, file)

    from rich.console import Console

    from fam_engine.jobs.selection.replay import run_replay
    from fam_engine.report.replay import print_replay

    result = run_replay(config.replay, seed=config.seed)
    if as_json:
        print(json.dumps(result))
    else:
        print_replay(result, Console())


def _quotas(pairs: list[str]) -> dict[str, str]:
    quotas = {}
    for pair in pairs:
        source, equals, most = pair.rpartition("=")
        if not (source and equals and most):
            raise UsageError(
                f"--quota {pair}: expected SOURCE=N, such as human=500", code="E_USAGE"
            )
        if source in quotas:
            raise UsageError(f"--quota {pair}: `{source}` has one already", code="E_USAGE")
        quotas[source] = most
    return quotas
