"""Ctrl-C and SIGTERM as something a job asks about, not something that happens to it.

In: signals. Out: `Interrupted`, raised only where the job calls `check`, between two commits. A second signal takes the
normal, immediate course; the journal makes that safe too.
"""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The user or the system asked the job to stop; what is done is kept.

    Attributes:
        exit_code: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Interrupts:
    """Catches the first SIGINT or SIGTERM while a job runs. Use as a context manager."""

    def __init__(self) -> None:
        self._caught: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        """Start catching. Outside the main thread Python cannot; then signals keep their course."""
        for number in _SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._catch)
            except ValueError:
                break
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        self._restore()

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._caught is not None:
            raise Interrupted(self._caught)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        self._caught = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
