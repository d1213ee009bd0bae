"""What can go wrong, and the exit code each kind ends the program with.

In: nothing. Out: exceptions every wing may raise. A `FamEngineError` is something its user can cause and cure, so it
prints as one line, ``error[E_CODE] where: what was found, what was expected (what to do)``; any other exception is
our bug (exit code 1). `RecordError` is different: it concerns one record, never stops a job and becomes a line of the
quarantine.
"""

from __future__ import annotations

from typing import Any, Final

EXIT_OK = 0
EXIT_BUG = 1
EXIT_QUARANTINED = 3
EXIT_SLOWER = 11
EXIT_UNREAD = 128 + 13  # as a shell says it of a program that SIGPIPE (13) ended


class FamEngineError(Exception):
    """An error its user can cause and cure.

    Args:
        message: What was found and what was expected, without a final full stop.
        code: Stable name for programs to test, `E_` and capitals.
        where: `file` or `file:line` the message is about, if there is one.
        hint: What to do about it, as an imperative.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, code: str, where: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.where = where
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how it is made anew, so that it can cross to another process."""
        return _remake, (type(self), self.message, self.code, self.where, self.hint)

    def __str__(self) -> str:
        """Give the one line a user sees."""
        where = f" {printable(self.where)}" if self.where else ""
        hint = f" ({printable(self.hint)})" if self.hint else ""
        return f"error[{self.code}]{where}: {printable(self.message)}{hint}"


def _remake(
    kind: type[FamEngineError], message: str, code: str, where: str | None, hint: str | None
) -> FamEngineError:
    return kind(message, code=code, where=where, hint=hint)


class UsageError(FamEngineError):
    """A flag, a configuration or a resume that does not fit."""

    exit_code = 2


class InputError(FamEngineError):
    """Input that cannot be used at all: not found, unreadable, nothing in it."""

    exit_code = 4


class StorageError(FamEngineError):
    """The disk: full, read-only, over quota, failing."""

    exit_code = 5


class LockedError(FamEngineError):
    """Another run holds the output folder."""

    exit_code = 6


class CorruptStateError(FamEngineError):
    """Saved progress that does not read back."""

    exit_code = 7


class DeviceError(FamEngineError):
    """The device is absent, too old, lost, or out of memory beyond cure."""

    exit_code = 8


class DivergedError(FamEngineError):
    """Training whose loss or gradient is no longer finite, or runs away."""

    exit_code = 9


class ModelRefusedError(FamEngineError):
    """A model, tokenizer or adapter that is unsafe, incomplete or not understood."""

    exit_code = 10


class RecordError(Exception):
    """One record that cannot be used; it goes to the quarantine and the job goes on.

    Args:
        code: Stable name, `E_` and capitals.
        reason: What was found and what was expected.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


NOT_UTF8_HINT: Final = "rename it, or call it through a link"


def is_utf8(name: str) -> bool:
    """Whether a name can be written into tables and summaries, which are UTF-8; to the system a name is any bytes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Escape control characters: a file name or a record must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
