"""The decoder: packed token ids in, hidden states of the rows that predict something out.

In: a `PackedBatch`. Out: hidden_RD after the final norm. One class serves Llama, Mistral, Qwen2 and
Qwen3; where they differ, `ModelConfig` says so.

Tensors are flat: T tokens of all segments, no batch dimension, no padding. Only attention knows of
segments: in one call a layer where a GPU has the kernel for it (`varlen_plan`), else in a call a
segment (`segments`). A quantized matrix is dequantized once a batch into scratch memory. The last
layer makes keys and values for all tokens and everything else for the rows alone. There is no
training here: activations live until the next layer has read them. Keys and values are kept for
those who ask (`keep_kv`); `hidden_next` continues from what they kept. Between the copy of a batch
to a GPU and the hidden states nothing waits for the GPU.

Letters: T tokens, R rows, D hidden size, F intermediate size, H query heads, G key heads, d head
width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.errors import ModelRefusedError
from fam_engine.model import ops
from fam_engine.model.checkpoint import Precision
from fam_engine.model.config import ModelConfig
from fam_engine.model.rope import RopeTables
from fam_engine.model.segments import AttentionPlan
from fam_engine.model.varlen_plan import DeviceBatch, on_device, send
from fam_engine.model.weights import LayerWeights, Linear, Weights

# cos and sin, each [T, d / 2].
Tables = tuple[torch.Tensor, torch.Tensor]
# Queries [Q, H, d] and keys, then values [T, 2G, d] of a layer -> mixed values [Q, H * d].
Attend = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def check_ids(batch: PackedBatch, config: ModelConfig) -> None:
    """Make sure that the model has a row for every token of a batch, before a device is asked for it.

    Raises:
        ModelRefusedError: It has not: the tokenizer is another model's.
    """
    largest = int(max(batch.input_ids.max(), batch.targets.max(initial=0)))
    if largest >= config.vocab_size:
        raise ModelRefusedError(
            f"the tokenizer gives the id {largest}, the model has rows for {config.vocab_size}",
            code="E_TOKENIZER",
            hint="take tokenizer and model from one folder",
        )


class Decoder:
    """A model ready to compute.

    Args:
        config: Its shape.
        weights: Its weights, on `device`.
        precision: How the matrices are held (for reports; the weights themselves tell).
        compute_dtype: Dtype of activations and matrix products: bf16, fp32 or fp64.
        device: Where it computes.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        precision: Precision,
        compute_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.weights = weights
        self.precision = precision
        self.compute_dtype = compute_dtype
        self.device = device
        self._scratch = ops.Scratch(weights, dtype=compute_dtype, device=device)
        self._rope = RopeTables(
            config.rope,
            config.head_dim,
            dtype=torch.promote_types(compute_dtype, torch.float32),
            device=device,
        )

    @property
    def num_parameters(self) -> int:
        """Return the number of the model's parameters, adapter aside; a tied head counts once."""
        linears = (
            linear
            for layer in self.weights.layers
            for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)
        )
        tables = {id(table): table for table in (self.weights.embed_VD, self.weights.head_VD)}
        return (
            sum(map(_num_parameters, linears))
            + sum(table.numel() for table in tables.values())
            + sum(map(_num_norm_parameters, self.weights.layers))
            + self.weights.final_norm_D.numel()
        )

    @property
    def memory_bytes(self) -> int:
        """Return the bytes the weights take."""
        return self.weights.memory_bytes

    def made_ready(self) -> Decoder:
        """Give the same model with each matrix kept as it is multiplied, adapter merged.

        The bits of its results are those of this decoder; it saves the making ready, batch after
        batch, and takes `ready_bytes` more memory.
        """
        return Decoder(
            self.config,
            ops.made_ready(self.weights, dtype=self.compute_dtype),
            precision=self.precision,
            compute_dtype=self.compute_dtype,
            device=self.device,
        )

    @property
    def ready_bytes(self) -> int:
        """Return the bytes `made_ready` takes beside the weights as they are."""
        return ops.num_unready(self.weights, dtype=self.compute_dtype) * self.compute_dtype.itemsize

    @property
    def scratch(self) -> ops.Scratch:
        """Return where it makes its matrices ready, for whoever computes between its batches."""
        return self._scratch

    def dense(self, linear: Linear) -> torch.Tensor:
        """Give one of its matrices as it is multiplied, adapter merged; valid until it computes again."""
        return self._scratch.dense(linear)

    @torch.inference_mode()
    def hidden_rows(
        self,
        batch: PackedBatch,
        *,
        keep_kv: Callable[[int, torch.Tensor], None] | None = None,
        look: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Compute a batch.

        Args:
            batch: The batch; T and R are multiples of 64.
            keep_kv: Called with each layer's index and turned keys, then values [T, 2G, d], to copy
                what it wants of them.
            look: Called with what the embedding gives, then what each layer does: [T, D], after the last
                layer [R, D].

        Returns:
            hidden_RD in the compute dtype, after the final norm, one row for each of `batch.rows`
            (filling included). `token_facts` takes it from there.

        Raises:
            ModelRefusedError: A token that the model has no row for.
        """
        check_ids(batch, self.config)
        given = self._on_device(batch)
        tables = self._rope.look_up(given.position_ids, num_positions=batch.num_positions)
        x_TD = self.weights.embed_VD[given.input_ids].to(self.compute_dtype)
        if look:
            look(x_TD)
        last = self.config.num_layers - 1
        for index, layer in enumerate(self.weights.layers):
            window, is_last = self.config.sliding_windows[index], index == last
            attend: Attend = partial(given.plan.attend, window=window, rows_only=is_last)
            if keep_kv:
                attend = partial(_keep_and_attend, attend=attend, keep_kv=partial(keep_kv, index))
            x_TD = self._layer(layer, x_TD, tables, attend, given.rows if is_last else None)
            if look:
                look(x_TD)
        return ops.rmsnorm(x_TD, self.weights.final_norm_D, eps=self.config.rms_norm_eps)

    def _on_device(self, batch: PackedBatch) -> DeviceBatch:
        """Send a batch, with the attention calls of its device."""
        if ops.has_varlen_attention(self.device, self.compute_dtype, self.config.head_dim):
            return on_device(batch, self.device)
        like = torch.empty(0, dtype=self.compute_dtype, device=self.device)
        ids, positions, rows = send([batch.input_ids, batch.position_ids, batch.rows], self.device)
        return DeviceBatch(ids, positions, rows, AttentionPlan(batch, like=like))

    @torch.inference_mode()
    def hidden_next(
        self,
        input_ids_R: torch.Tensor,
        position_ids_R: torch.Tensor,
        attend: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Compute one more token of each of R sequences.

        Args:
            input_ids_R: int[R] on the device, R a multiple of 64.
            position_ids_R: int[R], the place of each in its sequence.
            attend: Layer index, turned queries [R, H, d], turned keys, then values [R, 2G, d] of
                these tokens -> mixed values [R, H * d] over all the sequences' keys.

        Returns:
            hidden_RD as from `hidden_rows`.
        """
        longest = int(position_ids_R.max()) + 1
        tables = self._rope.look_up(position_ids_R, num_positions=longest)
        x_RD = self.weights.embed_VD[input_ids_R].to(self.compute_dtype)
        for index, layer in enumerate(self.weights.layers):
            x_RD = self._layer(layer, x_RD, tables, partial(attend, index), None)
        return ops.rmsnorm(x_RD, self.weights.final_norm_D, eps=self.config.rms_norm_eps)

    def _layer(
        self,
        layer: LayerWeights,
        x_TD: torch.Tensor,
        tables: Tables,
        attend: Attend,
        rows_R: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run one layer; with `rows_R` only those rows go on after the keys and values."""
        eps = self.config.rms_norm_eps
        normed_TD = ops.rmsnorm(x_TD, layer.input_norm_D, eps=eps)
        query_QHd, kv_TG2d = self._heads(layer, normed_TD, tables, rows_R)
        mixed = attend(query_QHd, kv_TG2d)
        x_QD = x_TD if rows_R is None else x_TD[rows_R]
        ops.linear_add_(x_QD, mixed, layer.o, self._scratch)
        normed_QD = ops.rmsnorm(x_QD, layer.post_norm_D, eps=eps)
        activated = ops.linear_swiglu(normed_QD, layer.gate_up, self._scratch)
        ops.linear_add_(x_QD, activated, layer.down, self._scratch)
        return x_QD

    def _heads(
        self,
        layer: LayerWeights,
        normed_TD: torch.Tensor,
        tables: Tables,
        rows_R: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give turned queries [Q, H, d] and turned keys, then values [T, 2G, d].

        Q is T, or R with `rows_R`. Both are views of one product where all tokens have queries.
        """
        heads, width = self.config.num_attention_heads, self.config.head_dim
        num_keys = self.config.num_key_value_heads
        norms = self._head_norms(layer)
        cos_Td, sin_Td = tables
        if rows_R is None:
            qkv = ops.linear(normed_TD, layer.qkv, self._scratch).unflatten(1, (-1, width))
            ops.qk_norm_rope(qkv[:, : heads + num_keys], cos_Td, sin_Td, norms=norms)
            return qkv[:, :heads], qkv[:, heads:]
        cut = heads * width
        query, kv = (
            ops.linear(x, layer.qkv, self._scratch, features=part).unflatten(1, (-1, width))
            for x, part in ((normed_TD[rows_R], slice(0, cut)), (normed_TD, slice(cut, None)))
        )
        ops.qk_norm_rope(query, cos_Td[rows_R], sin_Td[rows_R], norms=norms)
        keys_only = norms and replace(norms, num_query_heads=0)
        ops.qk_norm_rope(kv[:, :num_keys], cos_Td, sin_Td, norms=keys_only)
        return query, kv

    def _head_norms(self, layer: LayerWeights) -> ops.HeadNorms | None:
        """Say how heads are normed, where the model does it (Qwen3)."""
        if layer.q_norm is None or layer.k_norm is None:
            return None
        heads, eps = self.config.num_attention_heads, self.config.rms_norm_eps
        return ops.HeadNorms(layer.q_norm, layer.k_norm, heads, eps)


def _keep_and_attend(
    query_QHd: torch.Tensor,
    kv_TG2d: torch.Tensor,
    *,
    attend: Attend,
    keep_kv: Callable[[torch.Tensor], None],
) -> torch.Tensor:
    """Show keys and values to who asked for them, then attend."""
    keep_kv(kv_TG2d)
    return attend(query_QHd, kv_TG2d)


def _num_parameters(linear: Linear) -> int:
    bias = 0 if linear.bias is None else linear.bias.numel()
    return linear.out_features * linear.in_features + bias


def _num_norm_parameters(layer: LayerWeights) -> int:
    norms = (layer.input_norm_D, layer.post_norm_D, layer.q_norm, layer.k_norm)
    return sum(norm.numel() for norm in norms if norm is not None)
