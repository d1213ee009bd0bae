"""A batch of records as flat arrays: what the packer in Rust makes and the decoder reads.

In: entries of a spool, or the arrays. Out: `PackedBatch`, one type instead of eight loose arrays; or, for trainers that
want whole sequences side by side and share no prompts, `PackedSequences`.

There is no batch dimension and no padding inside: segments lie one after another. A record is a
*prompt segment* and a *response segment*, split at its own prompt length even when it is alone, and
records with the same prompt share one prompt segment. So what is computed for a record, down to the
shapes, depends on the record only (design: same record, same bits).

Letters: T tokens, S segments, R rows that predict something, E entries (records).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fam_engine._rust_tokenize import Plan, Spool, pack_batch
from fam_engine._rust_tokenize import pack_sequences as pack_in_rust

# T and R are multiples of this: matrix products then give each row the same bits whatever their
# height (measured; see fam_engine.model.products).
ROW_GRID: Final = 64
NO_PARENT: Final = -1

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
# Indices of entries in their spool.
Entries = Int64


def on_grid(count: int, grid: int = ROW_GRID) -> int:
    """Give the least multiple of `grid` that is no less."""
    return -(-count // grid) * grid


def batches_of(plan: Plan) -> list[Entries]:
    """Give the entries of each batch of a plan."""
    return [plan.batch_entries(number) for number in range(plan.num_batches)]


@dataclass(frozen=True)
class PackedBatch:
    """One batch.

    A segment sees its parent's tokens and its own up to each position. The inputs of a response
    segment are all tokens to predict but the last; with one token to predict there is no response
    segment and the last prompt row predicts it.

    Attributes:
        input_ids: int32[T]; T is a multiple of 64. The tail may be one dummy segment of token 0.
        position_ids: int32[T]; a prompt counts from 0, a response goes on where its prompt ended.
        cu_seqlens: int32[S + 1]; segment s is rows cu_seqlens[s] to cu_seqlens[s + 1].
        parents: int32[S]; the prompt segment whose keys a segment also sees, which comes earlier in
            the batch; -1 for none (prompts, the dummy).
        rows: int32[R]; rows whose hidden state predicts a token, entry after entry: the last prompt
            row, then the response rows. R is a multiple of 64, filled up with row 0.
        targets: int32[R]; the tokens to predict; 0 in the filling.
        num_rows: How many of the rows are real.
        entry_rows: int64[E + 1]; entry e has rows[entry_rows[e] : entry_rows[e + 1]].
        entries: int64[E]; their indices in the spool.
    """

    input_ids: Int32
    position_ids: Int32
    cu_seqlens: Int32
    parents: Int32
    rows: Int32
    targets: Int32
    num_rows: int
    entry_rows: Int64
    entries: Entries

    @classmethod
    def of(cls, spool: Spool, entries: Entries) -> PackedBatch:
        """Pack entries of a spool.

        Raises:
            SpoolError: They are damaged.
        """
        return cls(**pack_batch(spool, entries))

    @property
    def num_positions(self) -> int:
        """Return one more than the largest position; 1 where there is none."""
        return int(self.position_ids.max(initial=0)) + 1


@dataclass(frozen=True)
class PackedSequences:
    """All packs of a training set: whole sequences one after the other, no padding.

    Pack p is the sequences pack_starts[p] to pack_starts[p + 1], sequence s the tokens cu_seqlens[s] to
    cu_seqlens[s + 1]: a prompt, its answer, the end of turn. What TRL calls `seq_lengths` are differences of
    `cu_seqlens`; labels are `labels()`.

    Attributes:
        input_ids: int32[T].
        position_ids: int32[T]; each sequence counts from 0.
        response_mask: uint8[T]; 1 for answer and end of turn.
        cu_seqlens: int64[S + 1].
        pack_starts: int64[packs + 1].
        entries: int64[S]; the sequences' indices in the spool.
    """

    input_ids: Int32
    position_ids: Int32
    response_mask: npt.NDArray[np.uint8]
    cu_seqlens: Int64
    pack_starts: Int64
    entries: Entries

    def labels(self) -> Int32:
        """Give int32[T]: the ids to be learnt, -100 where there is nothing to learn."""
        return np.where(self.response_mask, self.input_ids, np.int32(-100))


def pack_sequences(spool: Spool | Path, *, capacity: int) -> PackedSequences:
    """Pack all entries of a spool, whole, into packs of at most `capacity` tokens.

    A sequence longer than that has a pack of its own.

    Raises:
        SpoolError: It is not there, unfinished or damaged.
    """
    spool = spool if isinstance(spool, Spool) else Spool.open(spool)
    entries = np.arange(len(spool), dtype=np.int64)
    return PackedSequences(**pack_in_rust(spool, entries, capacity=capacity))
