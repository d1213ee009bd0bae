"""How far an experiment is: the jobs' own progress, each line led by the step and the time left over all of them.

In: what the jobs tell, and which step begins. Out: the same, labelled, to whoever shows it. News of single jobs are
left out; an experiment has dozens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fam_engine.jobs.progress import Progress
from fam_engine.report.forecast import duration

if TYPE_CHECKING:
    from fam_engine.jobs.experiment.steps import Step


class StudyProgress:
    """Passes on the progress of the steps.

    Args:
        shown: Whom to tell.
    """

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._predicted: dict[str, float] = {}
        self._total = 0
        self._lead = ""
        self._current = ""
        self._started = time.monotonic()
        self._foreseen = 0.0

    def expect(self, predicted: Mapping[str, float], total: int) -> None:
        """Say what is to come: seconds of each step that is not done, by key, and the number of all."""
        self._predicted = dict(predicted)
        self._total = total

    def begin(self, number: int, step: Step) -> None:
        """Note that a step begins; the one before it is done."""
        self._foreseen += self._predicted.pop(self._current, 0.0)
        self._current = step.key
        left = self._seconds_left()
        about = f", about {duration(left)} left" if left else ""
        self._lead = f"step {number} of {self._total}{about}: {step.kind} {step.label}"
        self._shown.note(self._lead)

    def _seconds_left(self) -> float:
        """Predict, corrected by how far off the prediction was so far."""
        took = time.monotonic() - self._started
        pace = took / self._foreseen if self._foreseen > 0 else 1.0
        return pace * sum(self._predicted.values())

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Begin a phase of a step."""
        self._shown.start(f"{self._lead}: {label}" if self._lead else label, total, unit)

    def advance(self, count: int, detail: str = "") -> None:
        """Note progress of a phase."""
        self._shown.advance(count, detail)

    def note(self, text: str) -> None:
        """Leave out the news of a job."""

    def tell(self, text: str) -> None:
        """Pass on news of the experiment itself."""
        self._shown.note(text)
