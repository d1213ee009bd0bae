"""The learning rate of each step.

In: a step, and the shape of the schedule. Out: a factor of the peak rate. The shapes are those of transformers'
schedulers of the same names, so that settings carry over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Schedule:
    """A schedule.

    Attributes:
        name: What follows the warm-up: half a cosine to 0, a line to 0, or no change.
        peak: The learning rate after the warm-up.
        num_steps: Steps of the run.
        warmup_steps: Steps in which the rate rises in a line; the first already trains.
    """

    name: ScheduleName
    peak: float
    num_steps: int
    warmup_steps: int

    def learning_rate(self, step: int) -> float:
        """Give the learning rate of a step, from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        past = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        if self.name == "cosine":
            return self.peak * 0.5 * (1.0 + math.cos(math.pi * past))
        return self.peak * (1.0 - past) if self.name == "linear" else self.peak


def warmup_steps(share: float, num_steps: int) -> int:
    """Give the steps of a warm-up that is this share of the run."""
    return min(math.ceil(share * num_steps), num_steps)
