"""What several commands share: flags, how flags become settings, and running a job from them.

In: nothing. Out: annotated types for the arguments of the commands, `settings_given`, and `execute`.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from fam_engine.errors import EXIT_OK, EXIT_QUARANTINED, UsageError

if TYPE_CHECKING:
    # What these import takes longer than --help may.
    from rich.console import Console

    from fam_engine.config import Settings
    from fam_engine.jobs.outcome import JobOutcome

RUN = "Run"
MODEL = "Model"
DATA = "Data"
TEXTS = "Texts"

# Of options that are texts to typer: as paths it would check them in its own words and make "" this folder.
PATH = "<path>"

Model = Annotated[
    str | None,
    typer.Option(help="Folder, hub id with --download, or `embedded`.", rich_help_panel=MODEL),
]
Adapter = Annotated[
    str | None, typer.Option(metavar=PATH, help="PEFT LoRA folder.", rich_help_panel=MODEL)
]
Precision = Annotated[
    str | None, typer.Option(help="Weights: nf4 (default), bf16, fp32.", rich_help_panel=MODEL)
]
ComputeDtype = Annotated[
    str | None, typer.Option(help="auto (default), bf16, fp32.", rich_help_panel=MODEL)
]
Device = Annotated[
    str | None, typer.Option(help="auto (default), cpu, cuda.", rich_help_panel=MODEL)
]
Download = Annotated[
    bool | None,
    typer.Option("--download", help="Fetch --model from the hub.", rich_help_panel=MODEL),
]

Data = Annotated[
    list[str] | None,
    typer.Option(
        help="JSON Lines, array in .json, both also .gz or .zst; Parquet; one or more.",
        rich_help_panel=DATA,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(help="Chat template: auto (default), none, FILE.", rich_help_panel=DATA),
]
ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        help="""What else the template is told, JSON: '{"enable_thinking": false}'.""",
        rich_help_panel=DATA,
    ),
]
Boundary = Annotated[
    str | None,
    typer.Option(
        help="separate (default), or joint: encode prompt and answer together.",
        rich_help_panel=DATA,
    ),
]
ParseSpecial = Annotated[
    bool | None,
    typer.Option("--parse-special", help="Special tokens in texts count.", rich_help_panel=DATA),
]
MaxLength = Annotated[
    int | None, typer.Option(help="Longest record, tokens.", rich_help_panel=DATA)
]
OnLong = Annotated[
    str | None,
    typer.Option(help="Longer ones: quarantine (default), cut-prompt.", rich_help_panel=DATA),
]
Limit = Annotated[
    int | None, typer.Option(help="Read the first N records only.", rich_help_panel=DATA)
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map", help="field=column, as response=solution; repeat it.", rich_help_panel=DATA
    ),
]

MaxNewTokens = Annotated[
    int | None, typer.Option(help="Longest answer, tokens. [256]", rich_help_panel=TEXTS)
]
Temperature = Annotated[
    float | None, typer.Option(help="0: the likeliest token. [0]", rich_help_panel=TEXTS)
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Only the likeliest tokens with this probability together. [1]", rich_help_panel=TEXTS
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(help="Only so many likeliest tokens; 0: all. [0]", rich_help_panel=TEXTS),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="A string that ends an answer, not part of it; repeat it.", rich_help_panel=TEXTS
    ),
]
MaxSlots = Annotated[
    int | None,
    typer.Option(
        help="Most texts at a time, up to 64; fewer if memory is short. [64]", rich_help_panel=RUN
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of the random choices.", rich_help_panel=RUN)]

Out = Annotated[str | None, typer.Option(metavar=PATH, help="Output folder.", rich_help_panel=RUN)]
MaxTokensPerBatch = Annotated[
    int | None, typer.Option(help="Default: from free memory.", rich_help_panel=RUN)
]
Config = Annotated[
    str | None,
    typer.Option(metavar=PATH, help="YAML file of these settings.", rich_help_panel=RUN),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Only say what would happen; needs no --out.", rich_help_panel=RUN
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON.", rich_help_panel=RUN)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=RUN)]

_NOT_SETTINGS = ("config", "dry_run", "as_json", "quiet", "map_")


def settings_given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Turn a command's arguments into settings: those of the run itself left out, --map and JSON read.

    Raises:
        UsageError: A --map that is no field=column, or two for one field; JSON that is no object.
    """
    settings = {
        # Flags that may be repeated come as an empty list when they are not given.
        name: value if value != [] else None
        for name, value in arguments.items()
        if name not in _NOT_SETTINGS
    }
    if arguments.get("map_"):
        settings["map"] = _columns(arguments["map_"])
    if arguments.get("chat_template_kwargs") is not None:
        settings["chat_template_kwargs"] = _json_object(arguments["chat_template_kwargs"])
    return settings


def check_flags(given: Mapping[str, Any], kind: type[Settings], spoken: str) -> None:
    """Refuse flags that another use of the same command has.

    Args:
        given: Settings by name, None where not given.
        kind: What this use takes.
        spoken: This use in words, such as `--replay judges a ledger and`.

    Raises:
        UsageError: A flag that is not of this use.
    """
    for name, value in given.items():
        if value is not None and name not in kind.model_fields:
            flag = name.replace("_", "-")
            message = f"{spoken} takes no --{flag}"
            raise UsageError(message, code="E_USAGE", hint="leave one of them out")


class Outcome(Protocol):
    """What a job comes to: what `summary.json` holds, and how many records were left out."""

    @property
    def summary(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def num_quarantined(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Job:
    """A job as a command runs it.

    Attributes:
        run: Settings and somebody to tell about progress -> what came of it.
        show: Prints that.
        written: Names of what it leaves in its folder.
        forecast: The same as `run` for --dry-run, and
        show_forecast: what prints it; None where there is no such flag.
    """

    run: Callable[[Any, Any], Outcome]
    show: Callable[[Mapping[str, Any], Console], None]
    written: str
    forecast: Callable[[Any, Any], Outcome] | None = None
    show_forecast: Callable[[Mapping[str, Any], Console], None] | None = None


def execute(
    settings: Settings,
    out: pathlib.Path,
    load: Callable[[], Job],
    *,
    dry_run: bool = False,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a job or its forecast, print what came of it, and leave with its exit code.

    Args:
        settings: Checked already, so that a mistake is told before anything is loaded.
        out: The job's folder.
        load: Imports the job.
        dry_run: Only forecast.
        as_json: Print JSON and nothing else.
        quiet: Show no progress.

    Raises:
        typer.Exit: Always.
    """
    from rich.console import Console

    from fam_engine.report.progress import JobProgress

    job = load()
    run, show = (job.forecast, job.show_forecast) if dry_run else (job.run, job.show)
    assert run is not None
    assert show is not None
    with JobProgress(quiet=quiet) as progress:
        outcome = run(settings, progress)
    if as_json:
        print(json.dumps(outcome.summary))
    else:
        show(outcome.summary, Console())
        if not dry_run:
            print(f"{out}: {job.written}")
    raise typer.Exit(EXIT_QUARANTINED if outcome.num_quarantined else EXIT_OK)


_ConfigT = TypeVar("_ConfigT")


def forecasting(
    forecast: Callable[[_ConfigT, Any], Any],
) -> Callable[[_ConfigT, Any], JobOutcome]:
    """Make an outcome of a forecast's fields; `quarantined` is one of them."""

    def run(settings: _ConfigT, progress: Any) -> JobOutcome:  # noqa: ANN401 - whatever it tells
        from fam_engine.jobs.outcome import JobOutcome

        fields = vars(forecast(settings, progress))
        return JobOutcome(fields, sum(fields["quarantined"].values()))

    return run


def _json_object(text: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    raise UsageError(
        f"--chat-template-kwargs {text}: expected a JSON object, such as "
        "'{\"enable_thinking\": false}'",
        code="E_USAGE",
    )


def _columns(pairs: list[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise UsageError(
                f"--map {pair}: expected field=column, such as response=output", code="E_USAGE"
            )
        if field in columns:
            raise UsageError(
                f"--map {field}={columns[field]} and --map {pair}: expected one column a field",
                code="E_USAGE",
            )
        columns[field] = column
    return columns
