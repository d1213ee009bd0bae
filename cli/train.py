"""`fam-engine train`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated

import typer

from fam_engine.cli import options

EPILOG = "Example: fam-engine train --model embedded --data embedded --out trained --steps 60"

_ADAPTER = "Adapter"
_LOSS = "Loss"
_STEPS = "Steps"
_VALIDATION = "Validation"


def run(
    model: options.Model = None,
    data: options.Data = None,
    out: options.Out = None,
    precision: options.Precision = None,
    compute_dtype: options.ComputeDtype = None,
    device: options.Device = None,
    template: options.Template = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    parse_special: options.ParseSpecial = None,
    max_length: options.MaxLength = None,
    on_long: options.OnLong = None,
    train_on: Annotated[
        str | None,
        typer.Option(
            help="Turns learnt: last (default), all-assistant.", rich_help_panel=options.DATA
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of LoRA. [16]", rich_help_panel=_ADAPTER)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Its scaling is alpha / rank. [32]", rich_help_panel=_ADAPTER),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Of LoRA's inputs. [0]", rich_help_panel=_ADAPTER)
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(
            help="Some of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj, or all-linear. "
            "[all]",
            rich_help_panel=_ADAPTER,
        ),
    ] = None,
    rslora: Annotated[
        bool | None,
        typer.Option("--rslora", help="Scale by alpha / sqrt(rank).", rich_help_panel=_ADAPTER),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="plain (default); stm: only tokens the base finds likely; soft: the same by "
            "degrees; dft: by the model's own probability; excess: only until a token has become "
            "likely enough.",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    max_token_perplexity: Annotated[
        float | None,
        typer.Option(help="Threshold of stm and soft. [2.5]", rich_help_panel=_LOSS),
    ] = None,
    min_excess: Annotated[
        float | None,
        typer.Option(help="Threshold of excess, nats below the base. [-1]", rich_help_panel=_LOSS),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Times through the data. [3]", rich_help_panel=_STEPS)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Or: so many steps.", rich_help_panel=_STEPS)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Records a step. [16]", rich_help_panel=_STEPS)
    ] = None,
    max_tokens_per_batch: Annotated[
        int | None,
        typer.Option(
            help="Of a micro-batch; no result depends on it but by rounding. Default: from free "
            "memory.",
            rich_help_panel=_STEPS,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its peak. [2e-4]", rich_help_panel=_STEPS)
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="cosine (default), linear, constant.", rich_help_panel=_STEPS),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps. [0.03]", rich_help_panel=_STEPS)
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="[0]", rich_help_panel=_STEPS)] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw (default), adamw8bit.", rich_help_panel=_STEPS)
    ] = None,
    max_grad_norm: Annotated[
        float | None,
        typer.Option(help="Gradients are clipped to; 0: they are not. [1]", rich_help_panel=_STEPS),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="File to judge by; --map is of it too.", rich_help_panel=_VALIDATION),
    ] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(
            help="Or: share of the data, whole questions set aside.", rich_help_panel=_VALIDATION
        ),
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Steps. [an epoch]", rich_help_panel=_VALIDATION)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many without gain.", rich_help_panel=_VALIDATION),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints. [100]", rich_help_panel=options.RUN),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard", help="Also write its files.", rich_help_panel=options.RUN),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            help="Processes that train together, each with the whole model: one for each GPU. [1]",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of first values, order, dropout, split.", rich_help_panel=options.RUN),
    ] = None,
    limit: options.Limit = None,
    map_: options.Map = None,
    download: options.Download = None,
    config: options.Config = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a LoRA adapter on answers.

    Writes adapter (PEFT's two files, a model card), log.jsonl, checkpoints and summary.json into --out.

    A job that was stopped goes on when the same command is given again, and ends in the same bits.
    """
    given = options.settings_given(locals())

    from fam_engine.config import TrainConfig, check_threshold
    from fam_engine.settings_reading import read_config

    settings = read_config(TrainConfig, given, config, dry_run=dry_run)
    check_threshold(settings)
    with _one_voice():
        options.execute(
            settings, settings.out, _load, dry_run=dry_run, as_json=as_json, quiet=quiet
        )


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Print nothing in the processes beside the first that torchrun has started."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _load() -> options.Job:
    from fam_engine.jobs.training.forecast import forecast_train
    from fam_engine.jobs.training.job import run_train
    from fam_engine.report.training import print_training_forecast, print_training_summary

    return options.Job(
        run_train,
        print_training_summary,
        "adapter, log.jsonl, summary.json, quarantine.jsonl, checkpoints",
        options.forecasting(forecast_train),
        print_training_forecast,
    )
