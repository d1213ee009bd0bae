"""What a judgement says.

In: nothing. Out: `Verdict` and the kinds of task it may be about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["math", "choice", "exact", "code"]


@dataclass(frozen=True)
class Verdict:
    """Whether a response is correct, and why that was concluded.

    Args:
        correct: None where it cannot be judged: no gold answer, or one that makes no sense for the kind of task.
        extracted: The final answer as it was read from the response (code: the program); None if none was found.
        reason: One line for a log.
    """

    correct: bool | None
    extracted: str | None
    reason: str
