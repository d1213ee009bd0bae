"""The server from its settings to its end.

In: a `ServeConfig`. Out: exit code 0 once a first SIGINT or SIGTERM has come and everything in flight is answered; a
second one kills the process there and then: nothing is kept that could be left half written, and an interpreter that
shuts down while a thread computes in torch aborts. The address is taken before the model is loaded, so that a port in
use is told at once, and answers when the model is there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from fam_engine.config import TOKEN_VARIABLE, ServeConfig
from fam_engine.errors import EXIT_OK, UsageError
from fam_engine.jobs.resident import ResidentModel
from fam_engine.jobs.running import describe
from fam_engine.serving.app import Service, make_app
from fam_engine.serving.connections import MAX_CONNECTIONS, Protocol, affordable_connections
from fam_engine.serving.served import Limits, Served

# What the line and headers of a request may take; connections that wait to be accepted, and how many asyncio accepts at
# once, which are all open before the first of them can be refused.
_MAX_HEAD_BYTES: Final = 65536
_BACKLOG: Final = 128
_NUM_ACCEPTED: Final = 16
# A connection may wait so long for its next request: longer than clients keep one they do not use (aiohttp 15 seconds,
# nginx 60). With uvicorn's own 5, clients send into a connection that is just being closed.
KEEP_ALIVE_SECONDS: Final = 75


def run_server(config: ServeConfig, tell: Callable[[str], None]) -> int:
    """Serve until a signal comes; what SIGINT and SIGTERM do stays changed.

    Args:
        config: The settings.
        tell: Called with lines of news; the last one says where it serves.

    Returns:
        The exit code.

    Raises:
        FamEngineError: The address, the token or the model cannot be had.
    """
    token = read_token(config.token_file)
    with _listening(config.host, config.port) as listener:
        model = ResidentModel(
            config.model,
            adapter=config.adapter,
            precision=config.precision,
            compute_dtype=config.compute_dtype,
            device=config.device,
            template=config.template,
            chat_template_kwargs=config.chat_template_kwargs,
            max_length=config.max_length,
            max_tokens_per_batch=config.max_tokens_per_batch,
            download=config.download,
        )
        tell(describe(model.decoder))
        if token is None and not config.is_loopback:
            tell(f"anyone who reaches {config.host} may use it: no token is asked for")
        limits = Limits(max_requests=config.max_requests)
        service = Service(Served.under(config.name, model, limits), token)
        with contextlib.closing(model):
            return _serve(service, listener, lambda: tell(_address(config, listener)))


def uvicorn_settings(service: Service, *, max_connections: int = MAX_CONNECTIONS) -> uvicorn.Config:
    """Give what uvicorn is told for a service."""
    return uvicorn.Config(
        make_app(service),
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=max_connections,
        backlog=_NUM_ACCEPTED,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
    )


def _serve(service: Service, listener: socket.socket, ready: Callable[[], None]) -> int:
    server = _Server(uvicorn_settings(service, max_connections=affordable_connections()))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.take)
    service.start()
    ready()
    server.run(sockets=[listener])
    service.stop()
    return EXIT_OK


class _Server(uvicorn.Server):  # type: ignore[misc]  # an extra
    """Uvicorn without signals of its own: they come late, and end the process after a clean shutdown."""

    should_exit: bool

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept; asyncio lets no more wait than it accepts at once."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:
        """Leave signals as they are."""
        return contextlib.nullcontext()

    def take(self, number: int, _: FrameType | None) -> None:
        """Take the first signal as a wish to end, the second as an order."""
        if self.should_exit:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            os._exit(128 + number)  # the first process of a container survives that
        self.should_exit = True


def read_token(file: Path | None) -> str | None:
    """Find the token clients have to show: in a file, or in the environment.

    Raises:
        UsageError: It cannot be read, is not one word of ASCII, or is given twice.
    """
    variable = os.environ.get(TOKEN_VARIABLE)
    if file is None:
        return None if variable is None else _checked(variable, TOKEN_VARIABLE)
    if variable is not None:
        message = f"a token is given both by --token-file and by {TOKEN_VARIABLE}, expected one"
        raise UsageError(message, code="E_TOKEN")
    try:
        return _checked(file.read_text(encoding="ascii"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot be read as a token: {error}"
        raise UsageError(message, code="E_TOKEN", where=str(file)) from None


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        message = "holds no token, expected one word of ASCII"
        raise UsageError(message, code="E_TOKEN", where=where)
    return token


def _listening(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"{host}:{port} cannot be listened on: {error}",
            code="E_ADDRESS",
            hint="another program may serve there: choose another --port",
        ) from None


def _address(config: ServeConfig, listener: socket.socket) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"serving {config.name} at http://{host}:{listener.getsockname()[1]}"
