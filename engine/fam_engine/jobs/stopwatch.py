"""A stopwatch."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Give the seconds so far."""
        return time.perf_counter() - self._start
