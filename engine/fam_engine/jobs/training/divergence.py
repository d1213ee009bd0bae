"""When a run is lost: the rule by which training stops with exit code 9.

In: the loss and the gradient norm of each step. Out: a `DivergedError`, or nothing. A run is lost when

- either is not finite, or a validation loss or a parameter that is to be saved is not;
- the gradient is exactly 0 and the loss is not: a step too large has saturated the model (seen at a rate of 10^4);
- the mean surprisal of its answers over the last 20 steps is more than twice, plus one nat, the lowest such mean before
  (at first: the surprisal of the first step, the untrained model's), and more than one nat above the untrained model's
  surprisal of the same answers, which is computed only then. By the first rule alone a healthy run of single answers
  was lost where some are easy and some hard. The surprisal and not the loss: it means the same under every loss.

Loss and gradient are checked before the optimizer moves, the others before anything is saved: what is kept is from
before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fam_engine.errors import DivergedError

WINDOW = 20
FACTOR, NATS = 2.0, 1.0


class DivergenceWatch:
    """Looks at each step of a run.

    Args:
        recent: The mean surprisals of the last steps, from a checkpoint.
        lowest: The lowest mean over a window so far, or the first step's, from a checkpoint.
    """

    def __init__(self, recent: Sequence[float] = (), lowest: float | None = None) -> None:
        self.recent = list(recent)
        self.lowest = lowest

    def check(
        self,
        step: int,
        *,
        loss: float,
        nll: float,
        grad_norm: float,
        untrained: Callable[[], float],
    ) -> None:
        """Look at a step.

        Args:
            step: Its number, from 1.
            loss: The loss trained on.
            nll: Mean surprisal of the answers' tokens, nats.
            grad_norm: Norm of all gradients, before clipping.
            untrained: Gives the mean of the same over the last `WINDOW` steps under the untrained model.

        Raises:
            DivergedError: The run is lost.
        """
        check_finite(step, "loss", loss)
        check_finite(step, "gradient norm", grad_norm)
        if grad_norm == 0.0 and loss > 0.0:
            raise _diverged(
                step, f"the gradient is 0 at a loss of {loss:.2f}: nothing can be learnt"
            )
        self.recent = [*self.recent, nll][-WINDOW:]
        if self.lowest is None:
            self.lowest = nll
        if len(self.recent) < WINDOW:
            return
        mean = math.fsum(self.recent) / WINDOW
        if mean > FACTOR * self.lowest + NATS and mean > (usual := untrained()) + NATS:
            raise _diverged(
                step,
                f"the answers cost {mean:.2f} nats a token over the last {WINDOW} steps, "
                f"after {self.lowest:.2f} at best; the untrained model {usual:.2f}",
            )
        self.lowest = min(self.lowest, mean)


def check_finite(step: int, name: str, value: float) -> None:
    """Refuse a number of a step that is none.

    Raises:
        DivergedError: It is not finite.
    """
    if not math.isfinite(value):
        raise _diverged(step, f"the {name} is {value}, expected a finite number")


def _diverged(step: int, what: str) -> DivergedError:
    return DivergedError(
        what,
        code="E_DIVERGED",
        where=f"step {step}",
        hint="start anew in another --out with a lower --learning-rate or a longer --warmup",
    )
