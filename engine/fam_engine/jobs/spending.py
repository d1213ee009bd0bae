"""Tokens a job has computed and the seconds it took, over all its runs.

In: tokens as they come. Out: the sums under `spent` in the journal, where they outlive the process, and the speed of
this run in words.
"""

from __future__ import annotations

from fam_engine.jobs.journal import Journal
from fam_engine.jobs.stopwatch import Stopwatch

# Sums are kept with this many seconds between; a crash costs no more of them.
_SECONDS_A_NOTE = 1.0


class Spending:
    """Counts tokens while time runs. Use as a context manager.

    Args:
        journal: Of the job.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._watch = Stopwatch()
        self._before = spent_so_far(journal)
        self._tokens = 0
        self._noted = 0.0

    def __enter__(self) -> Spending:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Keep the sums, whatever ended the work."""
        self._note()

    def add(self, num_tokens: int) -> None:
        """Count tokens, and keep the sums now and then."""
        self._tokens += num_tokens
        if self._watch.seconds() - self._noted > _SECONDS_A_NOTE:
            self._noted = self._watch.seconds()
            self._note()

    def rate(self) -> str:
        """Give the speed of this run in words."""
        return f"{self._tokens / max(self._watch.seconds(), 1e-9):,.0f} tokens a second"

    def _note(self) -> None:
        tokens, seconds = self._before
        with self._journal.commit():
            self._journal.put("spent", (tokens + self._tokens, seconds + self._watch.seconds()))


def spent_so_far(journal: Journal) -> tuple[int, float]:
    """Give the tokens and seconds of all runs of a job."""
    tokens, seconds = journal.get("spent") or (0, 0.0)
    return tokens, seconds
