"""What the walk through the layers needs to know of a batch, on the device, where it gets in one copy.

In: a `PackedBatch`. Out: `TrainingBatch`: ids, positions, targets, the rows that predict, each layer's
attention. On a GPU nothing that follows waits for the device.

Letters: T tokens, R rows that predict, S rows that were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.model import ops
from fam_engine.model.segments import AttentionPlan
from fam_engine.model.training.attention import Attention, AttentionByRun
from fam_engine.model.training.row_sums import RowSums, order_of
from fam_engine.model.training.varlen import AttentionInOneCall, VarlenStep, plan_steps
from fam_engine.model.varlen_plan import send


@dataclass(frozen=True)
class ChosenRows:
    """The rows that predict.

    Attributes:
        rows_R: int32[R], which of the T tokens.
        sums: The way back: their gradients to the tokens'.
    """

    rows_R: torch.Tensor
    sums: RowSums


@dataclass(frozen=True)
class TrainingBatch:
    """A batch on the device.

    Attributes:
        input_ids: int32[T].
        position_ids: int32[T].
        targets: int32[R].
        chosen: The rows that predict.
        attention: Gives the attention of a layer with such a sliding window (or None), whose queries
            are all T (False) or the R rows only (True).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    chosen: ChosenRows
    attention: Callable[[int | None, bool], Attention]


def send_batch(
    batch: PackedBatch, device: torch.device, *, head_dim: int, attention_dtype: torch.dtype
) -> TrainingBatch:
    """Plan a batch and send it.

    Args:
        batch: The batch.
        device: Where to.
        head_dim: Width of a head.
        attention_dtype: What attention is computed in.
    """
    rows = batch.rows[: batch.num_rows]
    steps = plan_steps(batch) if _takes_one_call(device, attention_dtype, head_dim) else None
    arrays = [batch.input_ids, batch.position_ids, batch.targets[: batch.num_rows], rows]
    arrays += order_of(rows, len(batch.input_ids))
    arrays += [array for step in steps or () for array in step.arrays()]
    ids, positions, targets, rows_R, places, starts, *rest = send(arrays, device)
    if steps is None:
        attention = _by_run(batch, torch.empty(0, dtype=attention_dtype, device=device))
    else:
        attention = _in_one_call(steps, iter(rest))
    chosen = ChosenRows(rows_R, RowSums(places, starts))
    return TrainingBatch(ids, positions, targets, chosen, attention)


def _takes_one_call(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether a layer's attention is one call: on a GPU, where fp32 and fp64 are for reference."""
    return device.type == "cuda" or ops.has_varlen_attention(device, dtype, head_dim)


def _by_run(batch: PackedBatch, like: torch.Tensor) -> Callable[[int | None, bool], Attention]:
    plan = AttentionPlan(batch, like=like)
    return lambda window, rows_only: AttentionByRun(plan.calls(window=window, rows_only=rows_only))


def _in_one_call(
    steps: list[VarlenStep], tensors: Iterator[torch.Tensor]
) -> Callable[[int | None, bool], Attention]:
    calls = [(step.rows_only, step.on_device(tensors)) for step in steps]
    return lambda window, rows_only: AttentionInOneCall(
        [call for is_of_rows, call in calls if is_of_rows == rows_only], window
    )
