"""Which entries each step takes: a shuffle an epoch, cut into batches.

In: a seed, the entries, the batch size. Out: the entries of any step. The order is a pure function of these, so a
resumed run needs no more than its step number, and it never changes with a library: the shuffle sorts by the raw words
of PCG64, whose stream numpy guarantees, where `Generator.permutation` may change between versions.
"""

from __future__ import annotations

import math

import numpy as np

from fam_engine.data.packing import Entries

DEFAULT_EPOCHS = 3.0

# Keeps the words of the shuffle and of dropout apart.
_SHUFFLE, _DROPOUT = 1, 2


class StepOrder:
    """The order of a run.

    Args:
        entries: int64[n], the entries trained on.
        batch_size: Entries a step; the last step of an epoch takes what is left.
        seed: Of the shuffles.
    """

    def __init__(self, entries: Entries, *, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = math.ceil(len(entries) / batch_size)
        self._entries = entries
        self._seed = seed
        self._shuffled = (-1, entries)

    def step_entries(self, step: int) -> Entries:
        """Give the entries of a step, from 0; each comes once an epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size
        return self._shuffle(epoch)[start : start + self.batch_size]

    def taken_before(self, step: int) -> tuple[int, Entries]:
        """Give the epochs that are whole before a step, from 0, and what the next one has taken by then."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch, self._shuffle(epoch)[: place * self.batch_size]

    def _shuffle(self, epoch: int) -> Entries:
        if self._shuffled[0] != epoch:
            words = np.random.PCG64([_SHUFFLE, self._seed, epoch]).random_raw(len(self._entries))
            self._shuffled = (epoch, self._entries[np.argsort(words, kind="stable")])
        return self._shuffled[1]


def count_steps(
    num_entries: int, batch_size: int, *, epochs: float | None, steps: int | None
) -> int:
    """Give the steps of a run: those asked for, or those of so many epochs, begun ones too, as in transformers."""
    if steps is not None:
        return steps
    wanted = (epochs or DEFAULT_EPOCHS) * math.ceil(num_entries / batch_size)
    # Products are off by rounding: 0.07 epochs of 100 steps are 7.000000000000001.
    return max(1, math.ceil(round(wanted, 6)))


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Give the seed of a micro-batch's dropout masks, below 2**63."""
    word = np.random.PCG64([_DROPOUT, seed, step, micro_batch]).random_raw()
    return int(word) >> 1
