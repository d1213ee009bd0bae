"""Entries on their way to the spool, numbered as they come.

In: ids of one entry at a time, or records in bulk. Out: the spool's own batched writes. What an entry is for is its
*variant*: the record itself, its response alone (for IFD), or its response after worked examples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fam_engine._rust_tokenize import RecordBatch, SpoolWriter
from fam_engine.data.tokenizer import Ids

MAIN, ALONE, IN_CONTEXT = 0, 1, 2
_NO_IDS: Ids = np.array([], np.int32)


class EntryWriter:
    """Writes a spool.

    Args:
        folder: The spool's folder; a spool that is there is replaced.
        durable: Whether it must be on the disk when finished.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._writer = SpoolWriter(str(folder), durable=durable)
        self._contexts: list[Ids] = []
        self._targets: list[Ids] = []
        self._labels: list[tuple[int, int, int]] = []
        self.num_entries = 0

    def add(
        self, label: tuple[int, int], context: Ids, response: Ids, end_of_turn: Ids = _NO_IDS
    ) -> int:
        """Add an entry.

        Args:
            label: Position of the record, and variant.
            context: int32, at least one id.
            response: int32, the tokens to be scored.
            end_of_turn: int32, what ends the turn, scored apart.

        Returns:
            The entry's number.
        """
        self._contexts.append(context)
        self._targets.append(np.concatenate([response, end_of_turn]))
        self._labels.append((len(end_of_turn), *label))
        self.num_entries += 1
        return self.num_entries - 1

    def add_batch(self, records: RecordBatch, start: int, stop: int, position: int) -> int:
        """Add records of a batch as they are, as entries of the records from `position` on.

        Returns:
            The first entry's number; the others follow.
        """
        self.flush()
        self._writer.append_records(records, start, stop, variant=MAIN, record=position)
        self.num_entries += stop - start
        return self.num_entries - (stop - start)

    def flush(self) -> None:
        """Write what has been gathered."""
        if not self._labels:
            return
        num_eot, positions, variants = np.array(self._labels, np.int64).T
        self._writer.append(
            *_flat(self._contexts),
            *_flat(self._targets),
            num_eot.astype(np.int32),  # not a byte: the writer refuses what is more than one holds
            variants.astype(np.uint8),
            positions.astype(np.uint32),
        )
        self._contexts, self._targets, self._labels = [], [], []

    def finish(self) -> None:
        """Write the rest and make the spool one that can be opened."""
        self.flush()
        self._writer.finish()


def _flat(arrays: list[Ids]) -> tuple[Ids, npt.NDArray[np.int64]]:
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return np.concatenate(arrays).astype(np.int32, copy=False), offsets
