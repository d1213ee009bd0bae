"""How far a job is, for whoever wants to know."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Whoever wants to know how far a job is."""

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Begin a phase of `total` units."""

    def advance(self, count: int, detail: str = "") -> None:
        """Note that so many more units are done; `detail` is shown beside the count."""

    def note(self, text: str) -> None:
        """Pass on a line of news."""


class Nobody:
    """Nobody to tell."""

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Say nothing."""

    def advance(self, count: int, detail: str = "") -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
