"""Ctrl-C and SIGTERM as something a job asks about, and never waits long to be asked.

In: signals. Out: `Interrupted`, raised where the job calls `check`, between two commits; where it does not come to
that within `GRACE_SECONDS` (a model that loads, a large table being written), raised wherever the job is. Both are
safe: what survives `kill -9` at any moment survives an exception there. Only what is `held` is waited for. A second
signal ends the process.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

GRACE_SECONDS = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user or the system asked the job to stop; what is done is kept.

    No `Exception`: like KeyboardInterrupt it may come up anywhere, and nobody who expects an error means it.

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
        self._is_held = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        """Start catching. Outside the main thread Python cannot; then signals keep their course."""
        for number in _SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._catch)
            except ValueError:
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the signals back; raise `Interrupted` if one came too late for a check: other jobs may follow."""
        if self._caught is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if kind is None:
            self.check()

    @property
    def caught(self) -> int:
        """The signal that has come, 0 if none has."""
        return self._caught or 0

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._caught is not None:
            raise Interrupted(self._caught)

    def after(self, tell: Callable[[int], None]) -> Callable[[int], None]:
        """Give what tells of progress and then raises `Interrupted` if a signal has come."""

        def advance(count: int) -> None:
            tell(count)
            self.check()

        return advance

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raise nowhere inside but in `check`, however long that takes."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        self.check()

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        self._caught = number
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._lose_patience)
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def _lose_patience(self, _number: int, _frame: FrameType | None) -> None:
        if not self._is_held:
            self.check()
