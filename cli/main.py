"""The command line: one file a subcommand, and errors as one line with their exit code.

In: arguments. Out: a call of one job, its outcome printed, an exit code. Heavy imports happen inside the subcommands,
so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fam_engine.cli import (
    bench,
    evaluate,
    experiment,
    generate,
    lm_eval,
    merge,
    rewrite,
    score,
    select,
    serve,
    tokenize,
    train,
)
from fam_engine.errors import EXIT_BUG, FamEngineError

app = typer.Typer(
    name="fam-engine",
    help="Measure how familiar answers are to a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Add --debug to any command for the traceback behind an error.",
)
app.command(name="score", epilog=score.EPILOG)(score.run)
app.command(name="generate", epilog=generate.EPILOG)(generate.run)
app.command(name="rewrite", epilog=rewrite.EPILOG)(rewrite.run)
app.command(name="select", epilog=select.EPILOG)(select.run)
app.command(name="train", epilog=train.EPILOG)(train.run)
app.command(name="eval", epilog=evaluate.EPILOG)(evaluate.run)
app.command(name="experiment", epilog=experiment.EPILOG)(experiment.run)
app.command(name="merge", epilog=merge.EPILOG)(merge.run)
app.command(name="bench", epilog=bench.EPILOG)(bench.run)
app.command(name="tokenize", epilog=tokenize.EPILOG)(tokenize.run)
app.command(name="serve", epilog=serve.EPILOG)(serve.run)
app.command(
    name="lm-eval",
    epilog=lm_eval.EPILOG,
    # Whatever follows is for lm-eval, --help too.
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(lm_eval.run)


def _print_version(asked: bool) -> None:
    if asked:
        from fam_engine.version import __version__

        print(f"fam-engine {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Measure how familiar answers are to a language model."""


def main() -> None:
    """Run the program and leave with its exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if sys.platform == "win32":
        print("error[E_PLATFORM]: Windows is not supported (use WSL 2)", file=sys.stderr)
        sys.exit(2)
    try:
        app(_repeat_data(arguments))
    except Exception as error:
        if debug:
            raise
        sys.exit(_report(error))


def _repeat_data(arguments: list[str]) -> list[str]:
    """Write `--data a b` as `--data a --data b`: a shell's `*.jsonl` gives several files."""
    repeated: list[str] = []
    in_data = False
    for argument in arguments:
        is_flag = argument.startswith("-")
        if in_data and not is_flag and repeated[-1] != "--data":
            repeated.append("--data")
        in_data = argument == "--data" if is_flag else in_data
        repeated.append(argument)
    return repeated


def _report(error: Exception) -> int:
    """Print an error as one line; give its exit code."""
    if isinstance(error, FamEngineError):
        print(error, file=sys.stderr)
        return error.exit_code
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        print(
            f"interrupted by {error}; run the same command again to go on from here",
            file=sys.stderr,
        )
        return code
    summary = " ".join(str(error).split())
    print(
        f"error[E_BUG]: {type(error).__name__}: {summary} (our fault; please report it with the "
        "output of the same command with --debug)",
        file=sys.stderr,
    )
    return EXIT_BUG
