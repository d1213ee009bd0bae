"""What is said of arguments that the program cannot read: one line, as of every other error, and what to do.

In: typer's usage errors, which it would print in a box of several lines. Out: errors of ours, with a remedy where
people write what other programs take: files without an option, several values after one option, `--resume`.
"""

from __future__ import annotations

import re
from typing import Any, Final

import typer

from fam_engine.errors import UsageError

# Commands whose jobs keep what they have done; all others begin anew.
GO_ON: Final = {"score", "generate", "rewrite", "train", "eval", "experiment"}

# Typer brings click's `UsageError` as its own from some version on; this is either.
TyperUsageError: Final[Any] = typer.BadParameter.__base__

_STRAY: Final = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)


def usage_error(error: Any, arguments: list[str]) -> UsageError:  # noqa: ANN401 - click's or typer's own
    """Say in one line what typer says of the arguments, and what to do.

    Args:
        error: What typer raised.
        arguments: What the program was given, the command first.
    """
    said = " ".join(_message(error).split()).removesuffix(".")
    see = f"see {_command(error, arguments)} --help"
    remedy = _remedy(error, arguments)
    return UsageError(
        f"{said[:1].lower()}{said[1:]}",
        code="E_USAGE",
        hint=f"{remedy}; {see}" if remedy else see,
    )


def _message(error: Any) -> str:  # noqa: ANN401
    """Give what was found, and the option spelt most like it, which comes first, in words of ours."""
    alike = getattr(error, "possibilities", None)
    if alike:
        return f"{error.message.removesuffix('.')}; did you mean {alike[0]}?"
    return str(error.format_message())


def _command(error: Any, arguments: list[str]) -> str:  # noqa: ANN401
    """Give the command as it is called; some errors of typer's parser do not know theirs."""
    if error.ctx is not None:
        return str(error.ctx.command_path)
    return " ".join(["fam-engine", *(name for name in arguments[:1] if not name.startswith("-"))])


def _remedy(error: Any, arguments: list[str]) -> str | None:  # noqa: ANN401
    if error.ctx is None:
        return None
    command = error.ctx.command
    if getattr(error, "option_name", None) == "--resume" and command.name in GO_ON:
        return "a stopped run goes on when the same command is given again"
    stray = _STRAY.match(error.message)
    if stray is None:
        return None
    flag = _flag_before(stray[1], arguments)
    repeated = {name for p in command.params if getattr(p, "multiple", False) for name in p.opts}
    if flag in repeated:
        return f"repeat {flag} before each" + (" field=column" if flag == "--map" else "")
    takes_data = any("--data" in parameter.opts for parameter in command.params)
    return "give files with --data" if takes_data and "--data" not in arguments else None


def _flag_before(stray: str, arguments: list[str]) -> str | None:
    """Give the option before the first of the stray arguments, which typer joins with blanks."""
    flag = None
    for argument in arguments:
        if argument.startswith("-"):
            flag = argument
        elif stray == argument or stray.startswith(f"{argument} "):
            return flag
    return None
