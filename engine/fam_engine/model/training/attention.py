"""Attention of a batch and its gradients, without autograd: what a forward pass keeps, and how it is used.

In: turned queries, keys and values of all tokens. Out: mixed values and the logsumexps of their
scores; then the gradients of queries, keys and values. `Attention` says what a device's attention
has to do; `AttentionByRun` is that of CPUs, `varlen.AttentionInOneCall` that of GPUs.

Here each run of an `AttentionPlan` is a call of torch's flash attention for CPUs, the operators that
`scaled_dot_product_attention` runs itself (same bits, forward and backward), called by name so that
nothing but output and logsumexp is kept. A prompt that siblings share collects their gradients call
after call, in fp32 or wider: the order is that of the batch.

Letters: T tokens, Q queries, S keys of a call, H query heads, G key heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from fam_engine.model.segments import SegmentRuns

# Of each call.
Logsumexps: TypeAlias = list[torch.Tensor]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Attention(Protocol):
    """The attention of one layer of a batch."""

    def forward(
        self, query_QHd: torch.Tensor, kv_TG2d: torch.Tensor, *, out_QHd: torch.Tensor
    ) -> Logsumexps:
        """Write the mixed values.

        Args:
            query_QHd: [Q, H, d].
            kv_TG2d: [T, 2G, d]: keys, then values, of the same dtype.
            out_QHd: [Q, H, d] of any dtype.

        Returns:
            What `backward` needs beside its other arguments.
        """

    def backward(
        self,
        dout_QHd: torch.Tensor,
        query_QHd: torch.Tensor,
        kv_TG2d: torch.Tensor,
        out_QHd: torch.Tensor,
        logsumexps: Logsumexps,
        *,
        dquery_QHd: torch.Tensor,
        dkv_TG2d: torch.Tensor,
    ) -> None:
        """Write the gradients of queries and of keys, then values.

        Args:
            dout_QHd: The gradient of the mixed values, in the dtype of the queries.
            query_QHd: As `forward` had them.
            kv_TG2d: As `forward` had them.
            out_QHd: What it wrote, in the dtype of the queries.
            logsumexps: What it returned.
            dquery_QHd: [Q, H, d] in the dtype of the queries, written.
            dkv_TG2d: [T, 2G, d] in the dtype of the queries, written.
        """


@dataclass(frozen=True)
class AttentionByRun:
    """Attention for CPUs.

    Attributes:
        calls: Which queries see which keys; they cover all Q queries.
    """

    calls: list[SegmentRuns]

    def forward(
        self, query_QHd: torch.Tensor, kv_TG2d: torch.Tensor, *, out_QHd: torch.Tensor
    ) -> Logsumexps:
        """See `Attention`; a logsumexp is [G, H / G, Q]."""
        num_groups = kv_TG2d.shape[1] // 2
        logsumexps = []
        for segment in self.calls:
            kv = segment.keys(kv_TG2d)
            for run in segment.runs:
                result, logsumexp = _forward(
                    _grouped(query_QHd[run.queries], num_groups),
                    *_keys_and_values(kv[run.keys], query_QHd.shape[1]),
                    0.0,
                    run.is_causal,
                    attn_mask=run.mask_QS,
                )
                _grouped(out_QHd[run.queries], num_groups).copy_(result)
                logsumexps.append(logsumexp)
        return logsumexps

    def backward(
        self,
        dout_QHd: torch.Tensor,
        query_QHd: torch.Tensor,
        kv_TG2d: torch.Tensor,
        out_QHd: torch.Tensor,
        logsumexps: Logsumexps,
        *,
        dquery_QHd: torch.Tensor,
        dkv_TG2d: torch.Tensor,
    ) -> None:
        """See `Attention`."""
        num_heads, num_groups = query_QHd.shape[1], kv_TG2d.shape[1] // 2
        dkv_TG2d.zero_()
        kept = iter(logsumexps)
        for segment in self.calls:
            kv = segment.keys(kv_TG2d)
            for run in segment.runs:
                query, out, dout = (
                    _grouped(x[run.queries], num_groups) for x in (query_QHd, out_QHd, dout_QHd)
                )
                dquery, dkey, dvalue = _backward(
                    dout,
                    query,
                    *_keys_and_values(kv[run.keys], num_heads),
                    out,
                    next(kept),
                    0.0,
                    run.is_causal,
                    attn_mask=run.mask_QS,
                )
                _grouped(dquery_QHd[run.queries], num_groups).copy_(dquery)
                # Query heads of a group have one key head: its gradient is their sum.
                dkv = torch.cat((dkey.sum(1), dvalue.sum(1))).transpose(0, 1)
                for rows, part in _places(segment, run.keys):
                    dkv_TG2d[rows] += dkv[part]


def _grouped(x_QHd: torch.Tensor, num_groups: int) -> torch.Tensor:
    """View [Q, H, d] as [G, H / G, Q, d]."""
    grouped: torch.Tensor = x_QHd.unflatten(1, (num_groups, -1))
    return grouped.permute(1, 2, 0, 3)


def _keys_and_values(kv_SG2d: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """View [S, 2G, d] as keys and values of every query head, [G, H / G, S, d] each."""
    num_keys, num_both, width = kv_SG2d.shape
    num_groups = num_both // 2
    shape = (num_groups, num_heads // num_groups, num_keys, width)
    key, value = (x.transpose(0, 1)[:, None].expand(shape) for x in kv_SG2d.chunk(2, dim=1))
    return key, value


def _places(segment: SegmentRuns, keys: slice) -> Iterator[tuple[slice, slice]]:
    """Give where in the batch the keys of a run are, and which of the run's they are."""
    first = 0
    for rows in (segment.parent, segment.own):
        if rows is None:
            continue
        low, high = max(keys.start, first), min(keys.stop, first + rows.stop - rows.start)
        if low < high:
            start = rows.start + low - first
            yield slice(start, start + high - low), slice(low - keys.start, high - keys.start)
        first += rows.stop - rows.start
