"""The flags that several commands share, and how flags become settings.

In: nothing. Out: annotated types for the arguments of the commands, and `settings_given`.
"""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

from fam_engine.errors import UsageError

RUN = "Run"
MODEL = "Model"
DATA = "Data"

Model = Annotated[
    str | None,
    typer.Option(help="Folder, hub id with --download, or `embedded`.", rich_help_panel=MODEL),
]
Adapter = Annotated[
    pathlib.Path | None, typer.Option(help="PEFT LoRA folder.", rich_help_panel=MODEL)
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
    list[str] | None, typer.Option(help="JSON Lines or Parquet, one or more.", rich_help_panel=DATA)
]
Template = Annotated[
    str | None,
    typer.Option(help="Chat template: auto (default), none, FILE.", rich_help_panel=DATA),
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
    typer.Option("--map", help="field=column; repeat it.", rich_help_panel=DATA),
]

Out = Annotated[pathlib.Path | None, typer.Option(help="Output folder.", rich_help_panel=RUN)]
MaxTokensPerBatch = Annotated[
    int | None, typer.Option(help="Default: from free memory.", rich_help_panel=RUN)
]
Config = Annotated[
    pathlib.Path | None, typer.Option(help="YAML file of these settings.", rich_help_panel=RUN)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would happen.", rich_help_panel=RUN)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON.", rich_help_panel=RUN)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=RUN)]

_NOT_SETTINGS = ("config", "dry_run", "as_json", "quiet", "map_")


def settings_given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Turn a command's arguments into settings: those of the run itself left out, --map read.

    Raises:
        UsageError: A --map that is no field=column.
    """
    settings = {name: value for name, value in arguments.items() if name not in _NOT_SETTINGS}
    if arguments.get("map_"):
        settings["map"] = _columns(arguments["map_"])
    return settings


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
