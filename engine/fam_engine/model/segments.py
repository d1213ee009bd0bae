"""Which queries of a batch attend to which keys: attention as a list of plain calls.

In: a `PackedBatch`. Out: `AttentionPlan`, runs of consecutive queries of one segment, each with the
keys it sees, computed once a batch and used in every layer.

The keys of a response segment are its prompt's, then its own. Everything about a run (how many
queries and keys, where it is cut, its mask) follows from the lengths of prompt and response alone,
never from the batch; so do the bits of its result. Runs longer than 512 queries are cut: it bounds
the mask, and skips the keys a block of queries cannot see.

Letters: T tokens, S segments, R rows; in shapes of calls Q queries, S keys, H query heads, G key
heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from fam_engine.data.packing import NO_PARENT, Int32, PackedBatch
from fam_engine.model import ops

QUERY_BLOCK: Final = 512
# Queries to plan: segment, first row within it, number of rows, place of the first in the queries.
Span = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive queries of one segment and their keys.

    Attributes:
        queries: Where they are in the tensor of queries.
        keys: Which keys they see, counted from the first key of the segment's prompt.
        mask_QS: What each may see, or None: all of them.
        is_causal: Whether query i sees keys 0 to i only; then there is no mask.
    """

    queries: slice
    keys: slice
    mask_QS: torch.Tensor | None
    is_causal: bool


@dataclass(frozen=True, slots=True)
class SegmentRuns:
    """The runs of one segment, and where its keys lie in the batch.

    Attributes:
        own: Rows of the segment.
        parent: Rows of its prompt segment, or None.
        runs: The runs.
    """

    own: slice
    parent: slice | None
    runs: tuple[Run, ...]

    def keys(self, kv_T: torch.Tensor) -> torch.Tensor:
        """Give the rows of prompt and segment in one piece; a copy only if they lie apart."""
        if self.parent is None:
            return kv_T[self.own]
        if self.parent.stop == self.own.start:
            return kv_T[self.parent.start : self.own.stop]
        return torch.cat((kv_T[self.parent], kv_T[self.own]))


class AttentionPlan:
    """The attention calls of one batch, for all its tokens or for its rows only.

    Args:
        batch: The batch.
        like: A tensor of the dtype and device of queries and keys.
    """

    def __init__(self, batch: PackedBatch, *, like: torch.Tensor) -> None:
        self._like = like
        self._bounds: list[int] = batch.cu_seqlens.tolist()
        self._parents: list[int] = batch.parents.tolist()
        self._all = [
            (segment, 0, stop - start, start)
            for segment, (start, stop) in enumerate(
                zip(self._bounds[:-1], self._bounds[1:], strict=True)
            )
        ]
        self._rows = list(_runs_of_rows(batch.rows[: batch.num_rows], batch.cu_seqlens))
        self._masks: dict[tuple[int, int, int, int | None], torch.Tensor] = {}
        self._plans: dict[tuple[bool, int | None], list[SegmentRuns]] = {}

    def calls(self, *, window: int | None, rows_only: bool) -> list[SegmentRuns]:
        """Give the calls of a layer.

        Args:
            window: The layer's sliding window, tokens, or None.
            rows_only: Whether the queries are those of `batch.rows` [R] instead of all [T].
        """
        key = (rows_only, window)
        if key not in self._plans:
            spans = self._rows if rows_only else self._all
            self._plans[key] = [self._segment(span, window) for span in spans]
        return self._plans[key]

    def attend(
        self,
        query_QHd: torch.Tensor,
        kv_TG2d: torch.Tensor,
        *,
        window: int | None,
        rows_only: bool,
    ) -> torch.Tensor:
        """Give the mixed values of a layer.

        Args:
            query_QHd: Turned queries.
            kv_TG2d: Turned keys, then values.
            window: As for `calls`.
            rows_only: As for `calls`.

        Returns:
            [Q, H * d]; rows without a call (filling) are 0.
        """
        num_keys = kv_TG2d.shape[1] // 2
        out_QHd = query_QHd.new_zeros(query_QHd.shape)
        for segment in self.calls(window=window, rows_only=rows_only):
            kv = segment.keys(kv_TG2d)
            for run in segment.runs:
                ops.attention(
                    query_QHd[run.queries],
                    kv[run.keys, :num_keys],
                    kv[run.keys, num_keys:],
                    out_QHd=out_QHd[run.queries],
                    mask_QS=run.mask_QS,
                    is_causal=run.is_causal,
                )
        return out_QHd.flatten(1)

    def _segment(self, span: Span, window: int | None) -> SegmentRuns:
        segment, first, count, start = span
        parent, prompt_length = None, 0
        if self._parents[segment] != NO_PARENT:
            above = self._parents[segment]
            parent = slice(self._bounds[above], self._bounds[above + 1])
            prompt_length = parent.stop - parent.start
        position = prompt_length + first
        if position == 0 and (window is None or window >= count):
            runs = [Run(slice(start, start + count), slice(0, count), None, True)]
        else:
            runs = [
                self._run(start + at, position + at, min(QUERY_BLOCK, count - at), window)
                for at in range(0, count, QUERY_BLOCK)
            ]
        return SegmentRuns(slice(*self._bounds[segment : segment + 2]), parent, tuple(runs))

    def _run(self, start: int, position: int, count: int, window: int | None) -> Run:
        """Plan queries at positions `position` ... of the record: keys that none sees are cut off."""
        low = 0 if window is None else max(0, position - window + 1)
        high = position + count
        mask = None
        if count > 1:
            mask = self._mask(count, high - low, position - low, window)
        return Run(slice(start, start + count), slice(low, high), mask, False)

    def _mask(
        self, num_queries: int, num_keys: int, first: int, window: int | None
    ) -> torch.Tensor:
        key = (num_queries, num_keys, first, window)
        if key not in self._masks:
            self._masks[key] = ops.visibility_mask(
                num_queries, num_keys, first_query=first, window=window, like=self._like
            )
        return self._masks[key]


def _runs_of_rows(rows: Int32, cu_seqlens: Int32) -> Iterator[Span]:
    """Cut rows where they are not consecutive or change segment, and yield the pieces."""
    segments = np.searchsorted(cu_seqlens, rows, side="right") - 1
    is_cut = (np.diff(rows) != 1) | (np.diff(segments) != 0)
    starts = np.concatenate(([0], np.flatnonzero(is_cut) + 1, [len(rows)]))
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        segment = int(segments[start])
        yield segment, int(rows[start] - cu_seqlens[segment]), stop - start, start
