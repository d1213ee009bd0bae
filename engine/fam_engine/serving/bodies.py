"""Bodies of requests: read within limits, and read on where they are refused.

In: what a client sends. Out: the bytes of a body, or a `RequestError`. A client that still sends when its connection is
closed gets a reset in the place of the answer, and urllib, for one, asks to close each: so an answer that refuses waits
until the rest was read and thrown away, within bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from starlette.requests import Request

from fam_engine.serving.protocol import RequestError

# A body has to be there after so many seconds.
_BODY_SECONDS: Final = 30.0
_DISCARD_SECONDS: Final = 5.0
_MAX_DISCARDED_BYTES: Final = 64 << 20

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a body as long as it is JSON by name, small and in time.

    Raises:
        RequestError: It is not.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(
            f"content type {kind[:60]!r}, expected 'application/json'",
            status=415,
            code="unsupported_media_type",
        )
    too_large = RequestError(
        f"the body is longer than {max_bytes} bytes", status=413, code="body_too_large"
    )
    # Before it is waited for what was announced.
    if int(request.headers.get("content-length", "0")) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        message = f"the body was not there after {_BODY_SECONDS:.0f} seconds"
        raise RequestError(message, status=408, code="body_too_late") from None
    return bytes(body)


def reading_on(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Give both sides of a request, with answers that refuse sent after the rest of its body was read."""
    is_over = False

    async def receive_part() -> Scope:
        nonlocal is_over
        message = await receive()
        is_over = not message.get("more_body", False)
        return message

    async def discard() -> None:
        left = _MAX_DISCARDED_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not is_over and left > 0:
                    left -= len((await receive_part()).get("body", b""))

    async def send_part(message: Scope) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            await discard()
        await send(message)

    return receive_part, send_part
