"""`fam-engine lm-eval`: lm-evaluation-harness' own command line, with our model among its models.

Its release 0.4.13 does not look for models that other packages bring; later ones find ours by its entry point.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from fam_engine.errors import FamEngineError, UsageError

NAME = "fam-engine"
MODEL = "fam_engine.integrations.lm_eval:FamEngineLM"
EPILOG = (
    "Example: fam-engine lm-eval --model_args pretrained=embedded --tasks arc_easy "
    "--output_path results"
)
# What lm-eval's `run` takes for the choice of a model; a file of settings may make it too.
_CHOOSES_MODEL = ("--model", "-M", "--config", "-C")


def run(context: typer.Context) -> None:
    """Run lm-evaluation-harness with our model: every argument is its own (--help shows them).

    --model is fam-engine where none is given. Its arguments: pretrained, peft, precision,
    compute_dtype, template, max_length, add_bos_token, prefix_token_id, max_tokens_per_batch,
    download.
    """
    try:
        import lm_eval.models  # noqa: F401 - registers its own
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ModuleNotFoundError:
        raise UsageError(
            "lm-evaluation-harness is not installed",
            code="E_EXTRA",
            hint="pip install 'fam-engine[lm-eval]'",
        ) from None

    if NAME not in model_registry:
        model_registry.register(NAME, target=MODEL)
    sys.argv = ["fam-engine lm-eval", *with_model(context.args)]
    try:
        cli_evaluate()
    except FamEngineError:
        raise
    except Exception as error:
        summary = " ".join(str(error).split())
        raise UsageError(
            f"lm-eval stopped: {type(error).__name__}: {summary}",
            code="E_LM_EVAL",
            hint="--debug shows where",
        ) from error


def with_model(arguments: Sequence[str]) -> list[str]:
    """Add the choice of our model where a run is asked for and no model is chosen."""
    is_run = bool(arguments) and (arguments[0] == "run" or arguments[0].startswith("-"))
    is_help = "--help" in arguments or "-h" in arguments
    chosen = any(argument.split("=")[0] in _CHOOSES_MODEL for argument in arguments)
    return [*arguments] if chosen or is_help or not is_run else [*arguments, "--model", NAME]
