"""`fam-engine eval`: arguments to settings, one call, the outcome printed."""

from __future__ import annotations

from typing import Annotated

import typer

from fam_engine.cli import options

EPILOG = (
    "Example: fam-engine eval --model embedded --adapter trained/adapter --data task.jsonl "
    "--out evaluated"
)

_ANSWERS = "Answers"


def run(
    model: options.Model = None,
    data: options.Data = None,
    out: options.Out = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar=options.PATH,
            help="PEFT LoRA folder to compare with the base model; repeat it.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    base: Annotated[
        bool | None,
        typer.Option(
            "--base/--no-base",
            help="Whether the base model takes part. [yes]",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    precision: options.Precision = None,
    compute_dtype: options.ComputeDtype = None,
    device: options.Device = None,
    template: options.Template = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    parse_special: options.ParseSpecial = None,
    choice_by: Annotated[
        str | None,
        typer.Option(
            help="How options are chosen: logprob (default) scores each, generation lets the model "
            "write and reads its choice.",
            rich_help_panel=_ANSWERS,
        ),
    ] = None,
    choice_metric: Annotated[
        str | None,
        typer.Option(
            help="With logprob: acc (default) is by the sum, acc_norm by the mean a byte.",
            rich_help_panel=_ANSWERS,
        ),
    ] = None,
    few_shot_file: Annotated[
        str | None,
        typer.Option(help="Answered records to show before.", rich_help_panel=_ANSWERS),
    ] = None,
    few_shot: Annotated[
        int | None, typer.Option(help="How many of them.", rich_help_panel=_ANSWERS)
    ] = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    stop: options.Stop = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            help="A file that was trained on: say which questions are in it; repeat it.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    max_tokens_per_batch: options.MaxTokensPerBatch = None,
    seed: options.Seed = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Ask the first N records of each file only.", rich_help_panel=options.DATA
        ),
    ] = None,
    map_: options.Map = None,
    download: options.Download = None,
    config: options.Config = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how many questions a model and its adapters get right.

    A task file holds questions with an `answer`, and `choices` or `tests` where it takes them; `task` names the
    task (default: the file, with its folder where two have one name), `kind` how answers are judged: math, choice,
    exact or code (default: guessed).

    Writes summary.json, samples.parquet, report.html and quarantine.jsonl into --out. A job that was stopped
    goes on when the same command is given again; with more adapters it computes only those.
    """
    given = options.settings_given(locals())

    from fam_engine.config import EvalConfig
    from fam_engine.settings_reading import read_config

    settings = read_config(EvalConfig, given, config, dry_run=dry_run)
    options.execute(settings, settings.out, _load, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _load() -> options.Job:
    from fam_engine.jobs.evaluation.forecast import forecast_eval
    from fam_engine.jobs.evaluation.job import run_eval
    from fam_engine.report.evaluation import print_eval_forecast, print_evaluation

    return options.Job(
        run_eval,
        print_evaluation,
        "summary.json, samples.parquet, report.html, quarantine.jsonl",
        options.forecasting(forecast_eval),
        print_eval_forecast,
    )
