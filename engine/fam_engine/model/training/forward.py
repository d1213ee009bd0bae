"""The decoder as torch can differentiate it: packed token ids in, hidden states of the rows that predict out.

In: a `PackedBatch` and weights with an adapter. Out: hidden_RD after the final norm.
This is the plain path. Runs take `planned`, whose losses and gradients the tests hold to these.
The computation is `Decoder.hidden_rows`, layer by layer; only what is written differs, because
nothing may be overwritten that a backward pass reads.

Memory: of a layer only its input [T, D] is kept; the backward pass computes the layer again. Of a
quantized matrix nothing is kept. The last layer has queries, output and MLP for the R rows that
predict, and so has all that follows. Filling rows are left out.

A segment is cut out of queries, keys and values by one `split` for all: slices would each have a
gradient of the whole batch's size. A prompt that siblings share is one piece used several times, so
its gradient is their sum.

Letters: T tokens, R rows, D hidden size, H query heads, G key heads, d head width; Q queries, T or R.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from fam_engine.data.packing import Int32, PackedBatch
from fam_engine.model import ops, products
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import check_ids
from fam_engine.model.rope import RopeTables, Tables
from fam_engine.model.segments import AttentionPlan, SegmentRuns
from fam_engine.model.training.functions import (
    Dropout,
    add_lora,
    choose_rows,
    frozen_linear,
    rmsnorm,
    rope,
    swiglu,
)
from fam_engine.model.weights import LayerWeights, Linear, Weights

# A merged matrix's place in its layer, for the seeds of dropout.
QKV, O_PROJ, GATE_UP, DOWN = range(4)


@dataclass(frozen=True)
class LayerCall:
    """What one layer needs to know of the batch.

    Attributes:
        segments: Lengths of the segments, in order; they cover all T tokens.
        runs: Its attention calls, which cover the queries in order.
        rows: Which tokens go on after keys and values; None: all.
        dropout: What to leave out of LoRA's inputs.
    """

    segments: list[int]
    runs: list[SegmentRuns]
    rows: Int32 | None
    dropout: Dropout


def attention_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Give what attention computes in where all else computes in `dtype`."""
    # torch's backward pass of attention takes 6 times as long in bf16 as in fp32 for segments of
    # 40 to 80 tokens on a CPU with AVX512-BF16, as long for 512, 0.75 of it for 1024.
    return torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype


def layer_calls(
    config: ModelConfig, batch: PackedBatch, plan: AttentionPlan, dropout: Dropout
) -> list[LayerCall]:
    """Give the call of every layer: the last has queries for the rows that predict only."""
    last = config.num_layers - 1
    return [
        LayerCall(
            segments=np.diff(batch.cu_seqlens).tolist(),
            runs=plan.calls(window=window, rows_only=index == last),
            rows=batch.rows[: batch.num_rows] if index == last else None,
            dropout=dropout.of(index),
        )
        for index, window in enumerate(config.sliding_windows)
    ]


class TrainingForward:
    """Computes batches of one model.

    Args:
        config: Its shape.
        scratch: Where one of its matrices at a time is made ready.
        dtype: The compute dtype.
        device: Where.
    """

    def __init__(
        self,
        config: ModelConfig,
        scratch: products.Scratch,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._config = config
        self._dtype = dtype
        self._device = device
        self._scratch = scratch
        wide = torch.promote_types(dtype, torch.float32)
        self._attention_dtype = attention_dtype(dtype, device)
        self._rope = RopeTables(config, dtype=wide, device=device)

    def hidden_rows(
        self, weights: Weights, batch: PackedBatch, *, dropout: Dropout
    ) -> torch.Tensor:
        """Compute a batch.

        Args:
            weights: The weights, with the adapter to differentiate by.
            batch: The batch.
            dropout: What to leave out of LoRA's inputs.

        Returns:
            hidden_RD in the compute dtype, after the final norm, for the `num_rows` real rows.
        """
        check_ids(batch, self._config)
        ids_T = torch.from_numpy(batch.input_ids).to(self._device)
        tables_of_layers = self._rope.look_up(
            torch.from_numpy(batch.position_ids).to(self._device),
            num_positions=batch.num_positions,
        )
        x_TD = weights.embed_VD[ids_T].to(self._dtype)
        plan = AttentionPlan(batch, like=x_TD.new_empty(0, dtype=self._attention_dtype))
        calls = layer_calls(self._config, batch, plan, dropout)
        for layer, tables, call in zip(weights.layers, tables_of_layers, calls, strict=True):
            # Dropout has generators of its own: torch's global one is neither saved nor touched.
            x_TD = checkpoint(
                self._layer,
                layer,
                x_TD,
                tables,
                call,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return rmsnorm(x_TD, weights.final_norm_D, eps=self._config.rms_norm_eps)

    def _layer(
        self, layer: LayerWeights, x_TD: torch.Tensor, tables: Tables, call: LayerCall
    ) -> torch.Tensor:
        """Run one layer; with `call.rows` only those rows go on after the keys and values."""
        eps = self._config.rms_norm_eps
        normed_TD = rmsnorm(x_TD, layer.input_norm_D, eps=eps)
        query, key, value = (
            x.to(self._attention_dtype) for x in self._heads(layer, normed_TD, tables, call)
        )
        mixed = _attend(query, key, value, call).to(self._dtype)
        x_QD = x_TD if call.rows is None else choose_rows(x_TD, call.rows)
        x_QD = x_QD + self._linear(mixed, layer.o, call.dropout.of(O_PROJ))
        normed_QD = rmsnorm(x_QD, layer.post_norm_D, eps=eps)
        activated = swiglu(self._linear(normed_QD, layer.gate_up, call.dropout.of(GATE_UP)))
        return x_QD + self._linear(activated, layer.down, call.dropout.of(DOWN))

    def _heads(
        self, layer: LayerWeights, normed_TD: torch.Tensor, tables: Tables, call: LayerCall
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give queries [Q, H, d] and keys [T, G, d], normed and turned, and values [T, G, d]."""
        heads, width = self._config.num_attention_heads, self._config.head_dim
        keys = self._config.num_key_value_heads
        cos_Td, sin_Td = tables
        dropout = call.dropout.of(QKV)
        if call.rows is None:
            qkv = self._linear(normed_TD, layer.qkv, dropout).unflatten(1, (-1, width))
            query, key, value = qkv.split((heads, keys, keys), dim=1)
            cos, sin = cos_Td, sin_Td
        else:
            cut = heads * width
            chosen = choose_rows(normed_TD, call.rows)
            query, kv = (
                self._linear(x, layer.qkv, dropout, part).unflatten(1, (-1, width))
                for x, part in ((chosen, slice(0, cut)), (normed_TD, slice(cut, None)))
            )
            key, value = kv.split((keys, keys), dim=1)
            cos, sin = (choose_rows(table, call.rows) for table in tables)
        if layer.q_norm is not None and layer.k_norm is not None:
            query = rmsnorm(query, layer.q_norm, eps=self._config.rms_norm_eps)
            key = rmsnorm(key, layer.k_norm, eps=self._config.rms_norm_eps)
        return rope(query, cos, sin), rope(key, cos_Td, sin_Td), value

    def _linear(
        self,
        x: torch.Tensor,
        weight: Linear,
        dropout: Dropout,
        features: slice = slice(None),
    ) -> torch.Tensor:
        """Give x @ (W + scaling * B @ A)^T + bias for the chosen features."""
        parts = weight.lora.parts if weight.lora else ()
        out = frozen_linear(x, replace(weight, lora=None), self._scratch, features=features)
        first, stop, _ = features.indices(weight.out_features)
        inside = [part for part in parts if first <= part.row_start < stop]
        return add_lora(out, x, inside, first_row=first, dropout=dropout) if inside else out


def _attend(
    query_QHd: torch.Tensor, key_TGd: torch.Tensor, value_TGd: torch.Tensor, call: LayerCall
) -> torch.Tensor:
    """Give the mixed values [Q, H * d]."""
    starts = np.cumsum([0, *call.segments[:-1]]).tolist()
    keys = dict(zip(starts, key_TGd.split(call.segments), strict=True))
    values = dict(zip(starts, value_TGd.split(call.segments), strict=True))
    runs = [(segment, run) for segment in call.runs for run in segment.runs]
    sizes = [run.queries.stop - run.queries.start for _, run in runs]
    mixed = []
    for (segment, run), query in zip(runs, query_QHd.split(sizes), strict=True):
        out = torch.empty_like(query)
        ops.attention(
            query,
            _of_record(keys, segment)[run.keys],
            _of_record(values, segment)[run.keys],
            out_QHd=out,
            mask_QS=run.mask_QS,
            is_causal=run.is_causal,
        )
        mixed.append(out)
    return torch.cat(mixed).flatten(1)


def _of_record(pieces: dict[int, torch.Tensor], segment: SegmentRuns) -> torch.Tensor:
    """Give the rows of prompt and segment in one piece."""
    own = pieces[segment.own.start]
    return own if segment.parent is None else torch.cat((pieces[segment.parent.start], own))
