"""The command line: one file a subcommand, and errors as one line with their exit code.

In: arguments. Out: a call of one job, its outcome printed, an exit code. Heavy imports happen inside the subcommands,
so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any, Final, TextIO

import typer

from fam_engine.cli import (
    bench,
    compare,
    config_schema,
    doctor,
    evaluate,
    experiment,
    export,
    generate,
    lm_eval,
    merge,
    rewrite,
    score,
    select,
    serve,
    status,
    tokenize,
    train,
)
from fam_engine.cli.remedies import GO_ON, TyperUsageError, usage_error
from fam_engine.errors import EXIT_BUG, EXIT_UNREAD, FamEngineError, StorageError
from fam_engine.jobs.interrupts import Interrupted

_DISK_ERRORS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}

app = typer.Typer(
    name="fam-engine",
    help="Measure how familiar answers are to a language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Add --debug to any command for the traceback behind an error.",
)
app.command(name="score", epilog=score.EPILOG)(score.run)
app.command(name="generate", epilog=generate.EPILOG)(generate.run)
app.command(name="rewrite", epilog=rewrite.EPILOG)(rewrite.run)
app.command(name="select", epilog=select.EPILOG)(select.run)
app.command(name="export", epilog=export.EPILOG)(export.run)
app.command(name="train", epilog=train.EPILOG)(train.run)
app.command(name="eval", epilog=evaluate.EPILOG)(evaluate.run)
app.command(name="experiment", epilog=experiment.EPILOG)(experiment.run)
app.command(name="merge", epilog=merge.EPILOG)(merge.run)
app.command(name="bench", epilog=bench.EPILOG)(bench.run)
app.command(name="tokenize", epilog=tokenize.EPILOG)(tokenize.run)
app.command(name="serve", epilog=serve.EPILOG)(serve.run)
app.command(name="compare", epilog=compare.EPILOG)(compare.run)
app.command(name="status", epilog=status.EPILOG)(status.run)
app.command(name="doctor", epilog=doctor.EPILOG)(doctor.run)
app.add_typer(config_schema.app, name="config")
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
        try:
            # Not standalone: typer would print errors of usage in a box of its own.
            code = app(_repeat_data(arguments), prog_name="fam-engine", standalone_mode=False)
        finally:
            sys.stdout.flush()  # now, where it can still be told that it failed
    except SystemExit as stop:
        # So typer and rich leave, with 1, where nobody reads what they write.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        code = _leave_unread()
    except BrokenPipeError:
        code = _leave_unread()
    except TyperUsageError as error:
        code = _report_usage(error, arguments)
    except (Exception, Interrupted) as error:
        if debug:
            raise
        code = _report(error, arguments)
    sys.exit(code)


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


def _leave_unread() -> int:
    """Say nothing, as nobody reads it; give the exit code a shell has for a program that SIGPIPE ended."""
    _drop_unwritten(sys.stdout)
    _drop_unwritten(sys.stderr)
    return EXIT_UNREAD


def _report_usage(error: Any, arguments: list[str]) -> int:  # noqa: ANN401 - click's or typer's own
    """Print what typer says of the arguments as one line, or the help that it gives without any; give the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    problem = usage_error(error, arguments)
    _print(str(problem))
    return problem.exit_code


def _report(error: Exception | Interrupted, arguments: list[str]) -> int:
    """Print an error as one line; give its exit code."""
    if isinstance(error, Interrupted):
        goes_on = GO_ON.intersection(arguments[:1]) and "--dry-run" not in arguments
        then = "go on from here" if goes_on else "start over"
        _print(f"interrupted by {error}; run the same command again to {then}")
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        _drop_unwritten(sys.stdout)
        error = _storage_error(error)
    if isinstance(error, FamEngineError):
        _print(str(error))
        return error.exit_code
    summary = " ".join(str(error).split())
    _print(
        f"error[E_BUG]: {type(error).__name__}: {summary} (our fault; please report it with the "
        "output of the same command with --debug)"
    )
    return EXIT_BUG


def _storage_error(error: OSError) -> StorageError:
    """Say what a disk said outside a job's own folder: of standard output, of a temporary file."""
    where = error.filename or "a temporary file or standard output"
    return StorageError(
        f"{where} cannot be written: {error.strerror}",
        code="E_STORAGE",
        hint="free space, then run the same command again",
    )


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # the exit code has to do
        _drop_unwritten(sys.stderr)


def _drop_unwritten(stream: TextIO) -> None:
    """Let a stream's buffer go nowhere: Python tries it once more at the end, and would leave with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":  # as torchrun starts it
    main()
