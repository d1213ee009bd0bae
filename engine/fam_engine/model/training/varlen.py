"""Attention of a batch and its gradients in one call a layer: that of GPUs.

In: a `PackedBatch`; then what `Attention` says. Which sequences a call has is planned as for scoring
(`fam_engine.model.varlen_plan`): the keys of a prompt that siblings share are gathered, once a sibling.
Gathered keys are gathered again in the backward pass, not kept; the gradients of what was gathered go
back by sums in a fixed order (`row_sums`), in fp32, rounded once if there is one call, as there nearly
always is. What a layer does has no size that the host does not know before.

Letters: T tokens, Q queries, S keys of a call, H query heads, G key heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fam_engine.data.packing import Int32, PackedBatch
from fam_engine.model import ops
from fam_engine.model.training.attention import Logsumexps
from fam_engine.model.training.row_sums import RowSums, order_of
from fam_engine.model.varlen_plan import (
    Sequences,
    VarlenCall,
    call_on_device,
    has_own_prompt,
    plan_sequences,
)


@dataclass(frozen=True)
class OneCall:
    """A call and the way back of its keys.

    Attributes:
        call: Its sequences.
        key_sums: From its keys to the tokens'.
    """

    call: VarlenCall
    key_sums: RowSums

    def keys_and_values(self, kv_TG2d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give its keys and its values, [S, G, d] each."""
        keys = self.call.keys
        kv = kv_TG2d[keys] if isinstance(keys, slice) else kv_TG2d.index_select(0, keys)
        key, value = kv.chunk(2, dim=1)
        return key, value

    def lengths(self, window: int | None) -> dict[str, Any]:
        """Give what `ops.varlen_attention` wants to know of its sequences."""
        return {
            "cu_seqlens_q": self.call.cu_seqlens_q,
            "cu_seqlens_k": self.call.cu_seqlens_k,
            "max_seqlen_q": self.call.max_seqlen_q,
            "max_seqlen_k": self.call.max_seqlen_k,
            "window": window,
        }


@dataclass(frozen=True)
class VarlenStep:
    """A call, on the host.

    Attributes:
        sequences: Its sequences.
        rows_only: Whether its queries are the rows that predict only.
        num_tokens: T.
    """

    sequences: Sequences
    rows_only: bool
    num_tokens: int

    def arrays(self) -> Iterator[Int32]:
        """Yield what the device needs."""
        yield from self.sequences.arrays()
        keys = self.sequences.keys
        taken = (
            np.arange(keys.start, keys.stop, dtype=np.int32) if isinstance(keys, slice) else keys
        )
        yield from order_of(taken, self.num_tokens)

    def on_device(self, tensors: Iterator[torch.Tensor]) -> OneCall:
        """Take the same arrays, as they arrived."""
        cu_seqlens_q, cu_seqlens_k, keys = next(tensors), next(tensors), next(tensors)
        call = call_on_device(self.sequences, cu_seqlens_q, cu_seqlens_k, keys)
        return OneCall(call, RowSums(next(tensors), next(tensors)))


def plan_steps(batch: PackedBatch) -> list[VarlenStep]:
    """Plan the calls of a batch: those of layers with all queries, then those of the last layer."""
    num_tokens = len(batch.input_ids)
    every = np.ones(len(batch.parents), bool)
    planned = {
        False: plan_sequences(
            batch, np.arange(num_tokens, dtype=np.int32), may_join=has_own_prompt(batch)
        ),
        True: plan_sequences(batch, batch.rows[: batch.num_rows], may_join=every),
    }
    return [
        VarlenStep(sequences, rows_only, num_tokens)
        for rows_only, calls in planned.items()
        for sequences in calls
    ]


@dataclass(frozen=True)
class AttentionInOneCall:
    """Attention for GPUs.

    Attributes:
        calls: They cover all Q queries in order; nearly always one.
        window: The layer's sliding window, tokens, or None.
    """

    calls: list[OneCall]
    window: int | None

    def forward(
        self, query_QHd: torch.Tensor, kv_TG2d: torch.Tensor, *, out_QHd: torch.Tensor
    ) -> Logsumexps:
        """See `Attention`; a logsumexp is [H, Q]."""
        logsumexps = []
        for one in self.calls:
            queries = one.call.queries
            mixed, logsumexp = ops.varlen_attention(
                query_QHd[queries], *one.keys_and_values(kv_TG2d), **one.lengths(self.window)
            )
            out_QHd[queries] = mixed
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
        num_groups = kv_TG2d.shape[1] // 2
        wide = torch.promote_types(kv_TG2d.dtype, torch.float32)
        total = None if len(self.calls) == 1 else torch.zeros_like(dkv_TG2d, dtype=wide)
        for one, logsumexp in zip(self.calls, logsumexps, strict=True):
            queries = one.call.queries
            dquery, *dkv = ops.varlen_attention_backward(
                dout_QHd[queries],
                query_QHd[queries],
                *one.keys_and_values(kv_TG2d),
                out_QHd[queries],
                logsumexp,
                **one.lengths(self.window),
            )
            dquery_QHd[queries] = dquery
            part = dkv_TG2d if total is None else torch.empty_like(total)
            for heads, grad in zip(part.split(num_groups, dim=1), dkv, strict=True):
                one.key_sums.write(grad, out_T=heads)
            if total is not None:
                total.add_(part)
        if total is not None:
            dkv_TG2d.copy_(total)
