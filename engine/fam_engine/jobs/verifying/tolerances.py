"""How far a way of serving an adapter may be from what it was trained with.

In: what lies between the two. Out: a `Tolerance`. It is stated by the coarsest rounding that one of them has and the
other has not: where both multiply the same weights, little more than the order of sums is left; between NF4 and 16 bits
the weights themselves differ, and what is tolerated there is a judgement: larger differences begin to reorder answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fam_engine.config import Precision


@dataclass(frozen=True)
class Tolerance:
    """The largest differences tolerated, nats.

    Attributes:
        mean_abs: Mean over all tokens of a token's difference, without its sign.
        answer_max_abs: Difference of any one answer's mean.
    """

    mean_abs: float
    answer_max_abs: float

    def holds(self, figures: Mapping[str, Any]) -> bool:
        """Whether what `measure.agreement.agreement` found is within it."""
        return all(figures[name] <= limit for name, limit in vars(self).items())


TOLERANCES: Final[dict[Precision, Tolerance]] = {
    "fp32": Tolerance(mean_abs=1e-3, answer_max_abs=1e-2),
    "bf16": Tolerance(mean_abs=0.03, answer_max_abs=0.1),
    "nf4": Tolerance(mean_abs=0.15, answer_max_abs=0.5),
}
