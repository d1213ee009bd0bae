"""A stopwatch."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = self._last_lap = time.perf_counter()

    def seconds(self) -> float:
        """Give the seconds so far."""
        return time.perf_counter() - self._start

    def lap(self) -> float:
        """Give the seconds since the last lap, or since the start."""
        last, self._last_lap = self._last_lap, time.perf_counter()
        return self._last_lap - last
