"""A batch on a GPU: its ids, and which queries see which keys, as few tensors that get there in one copy.

In: a `PackedBatch`. Out: `DeviceBatch`, whose `VarlenPlan` serves all layers: one attention call a layer.

A sequence of a call is consecutive queries of one record, and its keys are the record's from the first on. Prompts are
shared, so the keys of siblings are gathered: prompt and own response side by side, once a sibling, by an index made
once a batch. A record whose prompt is its own lies in the batch as it is wanted: prompt and response are one sequence,
and where all are so nothing is gathered. Responses of a shared prompt are never one sequence with it, or what is not
finite in one response could spread to its siblings (see `kernels/varlen_attention.py`).

Why gathering and not three calls merged by their log-sum-exp (prompts; responses over their prompts; responses over
themselves). Of Llama-3.1-8B in bf16 a row of keys and values is 4 KB, a row of queries or mixed values 8 KB. Gathering
reads and writes 8 KB for each of the P + R keys of a response. The merge writes one more row of mixed values a token of
the response, reads two and writes one again: 32 KB for each of R. A token of the batch thus costs

    P, R, siblings             gathered       bytes: gather, merge     gather's share of the time
    60, 124, none   (G1)       nothing        0 KB       22 KB         0
    60, 124, 8      (G8)       1.46 rows      11.9 KB    30.9 KB       0.5 %
    600, 150, 8     (L8)       3.67 rows      30.0 KB    21.8 KB       1.2 %

(32 layers, 4.3 TB/s, 19.3 us a token: 15.3 GFLOP at 790 TFLOP/s). A batch of 16,384 tokens gathers 98 MB a layer for
G8 and 246 MB for L8, less than its MLP takes; the kernel reads them once more, behind its products. The merge is 3
calls and some 5 launches more a layer, rounds partial results to bf16 before it adds them, and needs masks of its own
for sliding windows. What it saves is tiles: the 8 responses of L8 over their prompt are one run of 1200 queries there,
here 8 runs of 150 in 2 tiles of 128 each; it would execute 0.73 of the responses' products, 2 % of the time. All
derived, but for the gathering of L8, which took 0.8 % of the time of eight layers on an H100; a kernel of our own with
a list of key ranges a tile would have both.

Letters: T tokens, S segments, R rows, N sequences; Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from fam_engine.data.packing import NO_PARENT, Int32, Int64, PackedBatch, on_grid
from fam_engine.model import ops
from fam_engine.model.segments import AttentionPlan

# Keys gathered by one call, for each token of the batch. At 8 the attention of Llama-3.1-8B takes a third more memory
# than its MLP; only many short answers to a long prompt need more calls than one. `memory` counts with this.
KEYS_PER_TOKEN: Final = 8
# Arrays begin at multiples of 16 bytes: kernels load wider then.
_ALIGNMENT: Final = 4


@dataclass(frozen=True, slots=True)
class Sequences:
    """The sequences of one call, on the host.

    Attributes:
        queries: Its part of the queries.
        keys: int32[sum of keys]: rows of keys and values, sequence after sequence; or a slice, if they lie in order.
        num_queries: int[N] of each sequence.
        num_keys: int[N].
    """

    queries: slice
    keys: Int32 | slice
    num_queries: Int64
    num_keys: Int64

    def arrays(self) -> Iterator[Int32]:
        """Yield what the device needs: `cu_seqlens` of queries and keys, and the index of keys."""
        for lengths in (self.num_queries, self.num_keys):
            yield np.concatenate(([0], lengths.cumsum())).astype(np.int32)
        yield np.empty(0, np.int32) if isinstance(self.keys, slice) else self.keys


@dataclass(frozen=True, slots=True)
class VarlenCall:
    """One call of `ops.varlen_attention`; see there for what has the same name.

    Attributes:
        queries: Which of the queries it is for.
        keys: Rows of keys and values, to gather or in order.
        cu_seqlens_q: int32[N + 1].
        cu_seqlens_k: int32[N + 1].
        max_seqlen_q: Queries of the longest sequence.
        max_seqlen_k: Keys of the longest sequence.
    """

    queries: slice
    keys: torch.Tensor | slice
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int

    def attend(
        self, query_QHd: torch.Tensor, kv_TG2d: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Give the mixed values of its queries [Q of the call, H, d]."""
        keys = self.keys
        kv = kv_TG2d[keys] if isinstance(keys, slice) else kv_TG2d.index_select(0, keys)
        num_groups = kv.shape[1] // 2
        out, _ = ops.varlen_attention(
            query_QHd[self.queries],
            kv[:, :num_groups],
            kv[:, num_groups:],
            cu_seqlens_q=self.cu_seqlens_q,
            cu_seqlens_k=self.cu_seqlens_k,
            max_seqlen_q=self.max_seqlen_q,
            max_seqlen_k=self.max_seqlen_k,
            window=window,
        )
        return out


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """The attention calls of one batch.

    Attributes:
        tokens: Those of a layer with queries for all T tokens; nearly always one.
        rows: Those of a layer with queries for `batch.rows` only, filling included.
    """

    tokens: list[VarlenCall]
    rows: list[VarlenCall]

    def attend(
        self,
        query_QHd: torch.Tensor,
        kv_TG2d: torch.Tensor,
        *,
        window: int | None,
        rows_only: bool,
    ) -> torch.Tensor:
        """Give the mixed values [Q, H * d] of a layer; see `AttentionPlan.attend`."""
        calls = self.rows if rows_only else self.tokens
        mixed = [call.attend(query_QHd, kv_TG2d, window) for call in calls]
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(1)


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """What the decoder needs of a batch, on the device.

    Attributes:
        input_ids: int32[T].
        position_ids: int32[T].
        rows: int32[R].
        plan: The attention calls.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    rows: torch.Tensor
    plan: VarlenPlan | AttentionPlan


def on_device(batch: PackedBatch, device: torch.device) -> DeviceBatch:
    """Plan a batch and send it, in one copy."""
    all_tokens = np.arange(len(batch.input_ids), dtype=np.int32)
    planned = [
        plan_sequences(batch, all_tokens, may_join=has_own_prompt(batch)),
        plan_sequences(batch, batch.rows, may_join=np.ones(len(batch.parents), bool)),
    ]
    arrays = [array for part in planned for call in part for array in call.arrays()]
    ids, positions, rows, *tensors = send(
        [batch.input_ids, batch.position_ids, batch.rows, *arrays], device
    )
    triples = iter(tensors)
    calls = [
        [call_on_device(call, next(triples), next(triples), next(triples)) for call in part]
        for part in planned
    ]
    return DeviceBatch(ids, positions, rows, VarlenPlan(*calls))


def send(arrays: Sequence[Int32], device: torch.device) -> list[torch.Tensor]:
    """Send arrays to a device in one copy, which a GPU makes while the host goes on."""
    room = [on_grid(len(array), _ALIGNMENT) for array in arrays]
    starts = np.cumsum([0, *room]).tolist()
    host = torch.zeros(starts[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
    for start, array in zip(starts, arrays, strict=False):
        host[start : start + len(array)] = torch.from_numpy(array)
    there = host.to(device, non_blocking=True)
    return [there[start : start + len(array)] for start, array in zip(starts, arrays, strict=False)]


def plan_sequences(
    batch: PackedBatch, rows: Int32, *, may_join: npt.NDArray[np.bool_]
) -> list[Sequences]:
    """Cut queries into sequences and those into calls.

    Args:
        batch: The batch.
        rows: int32[Q], the token of each query.
        may_join: bool[S], whether a response segment may go on in the sequence of its prompt's queries.
    """
    segments = segments_of(batch, rows)
    before, after = segments[:-1], segments[1:]
    goes_on = np.diff(batch.position_ids[rows]) == 1
    goes_on &= (before == after) | ((batch.parents[after] == before) & may_join[after])
    starts = np.concatenate(([0], np.flatnonzero(~goes_on) + 1))
    stops = np.append(starts[1:], len(rows))
    # A sequence's keys are those of its last query: the prompt's, then its own segment's up to that.
    last, segment = rows[stops - 1], segments[stops - 1]
    begin, lengths = batch.cu_seqlens[:-1], np.diff(batch.cu_seqlens)
    parent = batch.parents[segment]
    prompt_length = np.where(parent == NO_PARENT, 0, lengths[parent])
    own_length = last - begin[segment] + 1
    ranges = np.stack((begin[parent], begin[segment]), axis=1)
    range_lengths = np.stack((prompt_length, own_length), axis=1).astype(np.int64)
    bounds = _calls(range_lengths.sum(1), limit=KEYS_PER_TOKEN * len(batch.input_ids))
    return [
        Sequences(
            queries=slice(int(starts[a]), int(stops[b - 1])),
            keys=_in_order(_ranges(ranges[a:b].ravel(), range_lengths[a:b].ravel())),
            num_queries=(stops - starts)[a:b],
            num_keys=range_lengths[a:b].sum(1),
        )
        for a, b in pairwise(bounds)
    ]


def segments_of(batch: PackedBatch, rows: Int32) -> Int64:
    """Give the segment of each row; empty segments have none."""
    return np.searchsorted(batch.cu_seqlens, rows, side="right") - 1


def has_own_prompt(batch: PackedBatch) -> npt.NDArray[np.bool_]:
    """Give bool[S]: whether no other record has a response segment's prompt."""
    # Each record has the last row of its prompt among its rows.
    segments = segments_of(batch, batch.rows[: batch.num_rows])
    num_records = np.bincount(segments, minlength=len(batch.parents))
    own: npt.NDArray[np.bool_] = num_records[batch.parents] == 1
    return own


def _calls(num_keys: Int64, *, limit: int) -> list[int]:
    """Cut sequences where a call would gather too many keys; give the bounds of the calls."""
    bounds, gathered = [0], 0
    for sequence, count in enumerate(num_keys.tolist()):
        if gathered and gathered + count > limit:
            bounds.append(sequence)
            gathered = 0
        gathered += count
    return [*bounds, len(num_keys)]


def _ranges(starts: Int32, lengths: Int64) -> Int32:
    """Give the numbers of ranges, one range after the other."""
    shifts = starts - np.concatenate(([0], lengths.cumsum()[:-1]))
    return (np.arange(lengths.sum()) + np.repeat(shifts, lengths)).astype(np.int32)


def _in_order(keys: Int32) -> Int32 | slice:
    """Give a slice if that is what the rows are."""
    if (np.diff(keys) == 1).all():
        return slice(int(keys[0]), int(keys[-1]) + 1)
    return keys


def call_on_device(
    call: Sequences, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, keys: torch.Tensor
) -> VarlenCall:
    """Give a call with its arrays, in the order of `Sequences.arrays`, as they arrived."""
    return VarlenCall(
        queries=call.queries,
        keys=call.keys if isinstance(call.keys, slice) else keys,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=int(call.num_queries.max()),
        max_seqlen_k=int(call.num_keys.max()),
    )
