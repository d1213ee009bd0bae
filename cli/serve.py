"""`fam-engine serve`: arguments to settings, then the server until a signal comes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fam_engine.cli import options
from fam_engine.errors import UsageError

EPILOG = "Example: fam-engine serve --model embedded --port 8000"

_SERVER = "Server"


def run(
    model: options.Model = None,
    adapter: options.Adapter = None,
    precision: options.Precision = None,
    compute_dtype: options.ComputeDtype = None,
    device: options.Device = None,
    template: options.Template = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    max_length: options.MaxLength = None,
    max_tokens_per_batch: options.MaxTokensPerBatch = None,
    download: options.Download = None,
    host: Annotated[
        str | None, typer.Option(help="Address. [127.0.0.1]", rich_help_panel=_SERVER)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0: a free one. [8000]", rich_help_panel=_SERVER)
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="What requests call it; default: --model.", rich_help_panel=_SERVER),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar=options.PATH,
            help="File with the token clients must show; or set FAM_ENGINE_TOKEN.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    max_requests: Annotated[
        int | None,
        typer.Option(help="Requests at a time; more get 429. [128]", rich_help_panel=_SERVER),
    ] = None,
    config: options.Config = None,
    quiet: options.Quiet = False,
) -> None:
    """Serve a model over HTTP: OpenAI's completions with log-probs, and scores of responses.

    Ctrl-C or SIGTERM ends it once everything in flight is answered; a second one at once.
    """
    given = options.settings_given(locals())

    from fam_engine.config import ServeConfig
    from fam_engine.settings_reading import read_config

    settings = read_config(ServeConfig, given, config)
    try:
        from fam_engine.serving.server import run_server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        message = f"`{error.name}` is not installed"
        hint = "pip install 'fam-engine[serve]'"
        raise UsageError(message, code="E_EXTRA", hint=hint) from None

    def tell(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    raise typer.Exit(run_server(settings, tell))
