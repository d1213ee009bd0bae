"""Connections: how many there may be, and how long a client may keep one waiting.

In: the files this process may open. Out: a number of connections that leaves some for everything else, and uvicorn's
protocol with an end to waiting. uvicorn itself waits for ever for the head of a request and for a client to take its
answer, and where no file is left to accept a connection with, asyncio writes a traceback for every try.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

# Most connections are idle.
MAX_CONNECTIONS: Final = 1024
# What a process asks for where it may, and what it keeps: for its own files, connections that are accepted but not yet
# seen, and those told 503.
_ENOUGH_FILES: Final = 4096
_KEPT_FILES: Final = 160
# So many more than the limit are told 503; those beyond are closed unheard.
_NUM_REFUSED: Final = 32
_LOOK_SECONDS: Final = 30.0


def affordable_connections() -> int:
    """Raise the limit of open files as far as is allowed and needed; give the connections it leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    most = _ENOUGH_FILES if hard == unlimited else min(hard, _ENOUGH_FILES)
    if soft != unlimited and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    room = MAX_CONNECTIONS if soft == unlimited else soft - _KEPT_FILES
    return max(1, min(room, MAX_CONNECTIONS))


class Protocol(H11Protocol):  # type: ignore[misc]  # an extra
    """uvicorn's protocol that gives up a client which neither asks nor takes its answer between two looks."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        self._looking: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limit_concurrency + _NUM_REFUSED:
            transport.abort()
            return
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of a connection."""
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._seen = self.cycle, self.transport.get_write_buffer_size()
        self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Compare with the last look: a request that is being answered waits for us, all else for the client."""
        request, unsent = self._seen
        left = self.transport.get_write_buffer_size()
        is_answering = self.cycle is not None and not self.cycle.response_complete
        # Between two requests it is uvicorn that closes the connection, `KEEP_ALIVE_SECONDS` after the last.
        is_between = self.timeout_keep_alive_task is not None
        is_silent = not left and not is_answering and not is_between and self.cycle is request
        if left >= unsent > 0 or is_silent:
            self.transport.abort()
        else:
            self._look_later()
