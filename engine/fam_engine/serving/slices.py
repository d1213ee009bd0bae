"""Scores that wait, cut into slices, so that no request holds up the others for longer than a slice takes.

In: jobs of any size, in a queue. Out: batches of slices, each the next pairs of a job. What is left of a job goes to
the end of the queue; between two slices it may be cancelled. Cutting changes no figure, only work: a context shared by
pairs on both sides of a cut is computed twice, so no cut is made before there are as many targets as context.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from fam_engine.jobs.scoring.continuations import Continuation, Pair

# Tokens of a batch, about: enough to fill the model's own batches.
_TOKENS_AT_ONCE = 16384


@dataclass(eq=False)
class ScoreJob:
    """Pairs of one request.

    Attributes:
        pairs: Contexts and targets, those of one context one after another.
        num_top: How many of the most probable tokens are wanted.
        future: Gets a `Continuation` a pair, in order.
        found: Those of the first pairs.
    """

    pairs: Sequence[Pair]
    num_top: int
    future: Future[list[Continuation]] = field(default_factory=Future)
    found: list[Continuation] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for it: it is neither answered, nor failed, nor cancelled."""
        return not self.future.done()

    def next_slice(self) -> Slice:
        """Give the next pairs, as many as are computed together."""
        taken: list[Pair] = []
        num_tokens = 0
        for context, targets in self.pairs[len(self.found) :]:
            is_shared = bool(taken) and np.array_equal(taken[-1][0], context)
            size = len(targets) + (0 if is_shared else len(context))
            # No context is computed again for fewer targets than it has tokens.
            if taken and num_tokens + size > max(_TOKENS_AT_ONCE, 2 * len(context)):
                break
            taken.append((context, targets))
            num_tokens += size
        return Slice(self, taken, num_tokens)

    def take(self, results: Sequence[Continuation]) -> None:
        """Take the results of a slice; hand all to whoever waits once they are complete."""
        self.found += results
        # Only now, for what is running cannot be cancelled.
        if len(self.found) == len(self.pairs) and self.future.set_running_or_notify_cancel():
            self.future.set_result(self.found)


@dataclass(frozen=True, eq=False)
class Slice:
    """Pairs that are computed together.

    Attributes:
        job: Whose they are.
        pairs: The pairs.
        num_tokens: Of them, a shared context counted once.
    """

    job: ScoreJob
    pairs: Sequence[Pair]
    num_tokens: int


def next_batch(waiting: deque[ScoreJob]) -> list[Slice]:
    """Take the first job's next slice off a queue, and others like it while they are few tokens together."""
    batch: list[Slice] = []
    room = _TOKENS_AT_ONCE
    while waiting and room > 0:
        job = waiting[0]
        if not job.is_wanted:
            waiting.popleft()
            continue
        part = job.next_slice()
        if batch and (part.num_tokens > room or job.num_top != batch[0].job.num_top):
            break
        waiting.popleft()
        batch.append(part)
        room -= part.num_tokens
    return batch
