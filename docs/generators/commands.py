"""The reference of commands and of settings, from the program itself.

In: the typer application, and the JSON Schemas `fam-engine config schema` prints. Out: Markdown, a section a command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import typer

from fam_engine.cli.main import app
from fam_engine.cli.options import PATH
from fam_engine.jobs.schemas import SETTINGS, settings_schema

# By a part of the type's name.
KINDS = {
    "bool": "switch",
    "int": "whole number",
    "float": "number",
    "path": "path",
    "str": "text",
    "text": "text",
}


def commands() -> dict[str, click.Command]:
    """Give all commands by their full names, in the order of --help."""
    root = typer.main.get_command(app)
    found: dict[str, click.Command] = {}
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {f"{name} {n}": c for n, c in inner.items()} if inner else {name: command}
    return found


def commands_page() -> str:
    """Give a section a command: what it does, its arguments, an example."""
    return "\n".join(_command(name, command) for name, command in commands().items())


def _command(name: str, command: click.Command) -> str:
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    rows = [
        f"| {_spelling(given)} | {_kind(given)} | {_escaped(_help(given))} |" for given in shown
    ]
    table = ["| argument | kind | meaning |", "|---|---|---|", *rows]
    example, *output = (command.epilog or "").removeprefix("Example: ").split("\n\n")
    lines = [
        f"fam-engine {name.split()[0]}".join(
            ["", example.split(f"fam-engine {name.split()[0]}", 1)[-1]]
        )
    ]
    return "\n".join(
        [
            f"## `{name}`\n",
            (command.help or "").strip() + "\n",
            *table,
            "\n```",
            *lines,
            *output,
            "```\n",
        ]
    )


def _spelling(given: click.Parameter) -> str:
    flags = [flag for flag in given.opts if flag.startswith("-")]
    return ", ".join(f"`{flag}`" for flag in flags) or f"`{given.name.upper()}`"  # type: ignore[union-attr]


def _kind(given: click.Parameter) -> str:
    is_many = given.nargs == -1 or getattr(given, "multiple", False)
    descriptor = getattr(given, "type_descriptor", None)  # older releases of typer have click's
    name = str(descriptor.annotation if descriptor else given.type.name)
    is_path = getattr(given, "metavar", None) == PATH  # such are texts to typer
    kind = "path" if is_path else next(w for part, w in KINDS.items() if part in name.lower())
    return f"one or more of {kind}" if is_many else kind


def _help(given: click.Parameter) -> str:
    return " ".join((getattr(given, "help", None) or "").split())


def settings_page() -> str:
    """Give a section a command that reads a YAML: every name, what it may be, its default."""
    return "\n".join(_settings(name) for name in SETTINGS if name != "experiment")


def _settings(command: str) -> str:
    schema = settings_schema(command)
    needed = set(schema.get("required", ()))
    flags = {
        flag.lstrip("-"): _help(given)
        for given in commands()[command].params
        for flag in given.opts
    }
    rows = [
        f"| `{name}` | {_escaped(_allowed(value))} | {_default(name, value, needed)} | "
        f"{_escaped(flags.get(name.replace('_', '-'), value.get('description', '')))} |"
        for name, value in schema["properties"].items()
    ]
    return "\n".join(
        [
            f"## `{command}`\n",
            "| name | value | default | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _default(name: str, value: dict[str, Any], needed: set[str]) -> str:
    if name in needed:
        return "needed"
    default = value.get("default")
    return "none" if default in (None, [], {}) else f"`{json.dumps(default).strip(chr(34))}`"


def _allowed(value: dict[str, Any]) -> str:
    """Say what a value may be, in a few words."""
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "anyOf" in value:
        return " or ".join(_allowed(one) for one in value["anyOf"] if one.get("type") != "null")
    kind = value.get("type", "any")
    if kind == "array":
        return f"list of: {_allowed(value.get('items', {}))}"
    words = {
        "string": "text",
        "integer": "whole number",
        "boolean": "`true`, `false`",
        "object": "names to values",
    }
    return " and ".join([words.get(kind, kind), *_bounds(value)]).replace(" and ", " ", 1)


def _bounds(value: dict[str, Any]) -> Iterator[str]:
    signs = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    for keyword, sign in signs.items():
        if keyword in value:
            yield f"{sign} {value[keyword]}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
