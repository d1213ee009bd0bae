"""What every job comes to. Apart from `running`, because that imports torch and a selection does without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class JobOutcome:
    """A finished job.

    Attributes:
        summary: What `summary.json` holds.
        num_quarantined: Records left out.
    """

    summary: dict[str, Any]
    num_quarantined: int
