"""What to do about arguments that the program cannot read, added to what typer says of them.

In: typer's usage errors. Out: the same, with a remedy where people write what other programs take: files without an
option, several values after one `--map`, `--resume`.
"""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperGroup

# Commands whose jobs keep what they have done; all others begin anew.
GO_ON: Final = {"score", "generate", "rewrite", "train", "eval", "experiment"}

# Typer brings click's `UsageError` as its own from some version on; this is either.
_UsageError: Final[Any] = typer.BadParameter.__base__


class Commands(TyperGroup):
    """The subcommands."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - click's or typer's own, by its version
        """Run one; a usage error gets its remedy."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            remedy = _remedy(error)
            error.message += f" ({remedy})" if remedy else ""
            raise


def _remedy(error: Any) -> str | None:  # noqa: ANN401 - click's or typer's own, by its version
    message, ctx = error.message, error.ctx
    if ctx is None:
        return None
    if getattr(error, "option_name", None) == "--resume" and ctx.command.name in GO_ON:
        return "a stopped run goes on when the same command is given again"
    if not message.startswith("Got unexpected extra argument"):
        return None
    options = {name for parameter in ctx.command.params for name in parameter.opts}
    if "=" in message and "--map" in options:
        return "repeat --map before each field=column"
    return "give files with --data" if "--data" in options else None
