"""The decoder: packed token ids in, hidden states of the rows that predict something out.

In: a `PackedBatch`. Out: hidden_RD after the final norm. One class serves Llama, Mistral, Qwen2,
Qwen3 and SmolLM3; where they differ, `ModelConfig` says so.

Tensors are flat: T tokens of all segments, no batch dimension, no padding. Only attention knows of
segments: in one call a layer where a GPU has the kernel for it (`varlen_plan`), else in a call a
segment (`segments`). A quantized matrix is dequantized once a batch into scratch memory. The last
layer makes keys and values for all tokens and everything else for the rows alone. There is no
training here: activations live until the next layer has read them. Keys and values are kept for
those who ask (`keep_kv`); `hidden_next` continues from what they kept. Between the copy of a batch
to a GPU and the hidden states nothing waits for the GPU.

Why no CUDA graphs, and so no grid of shapes for them. A layer is 7 launches, 2 for each 2048 tokens of its MLP, and
with NF4 4 of the dequantizer (counted); at 8 us each, Triton's rather twice that, 105 us of the host up to 2048 tokens.
Its products and the dequantizer take an H200 (790 TFLOP/s, 4.3 TB/s)

    1B    36 us + 0.154 us a token    2.6 ms at the default budget of 16,384 tokens (27 launches, 215 us)
    8B   128 us + 0.552 us a token    9.2 ms (the same)

so the host is ahead by a factor of 10 and more, and a graph would save the gaps between kernels alone, about 1 us each:
1.2 % of a 1B model's time, less of larger ones. A batch waits for the host below 440 tokens of a 1B model and 180 of a
3B model, never of an 8B model, nor on a GPU with a fifth of these rates. There a graph would pay: one record of 200
tokens to a 1B model, as `serve` may be asked, is 220 launches, 1.8 ms, of which the GPU works 60 %. It would need
attention whose longest sequence is no argument of the host. All derived. Measured on an H100, eight layers of 8B at
16,384 tokens a batch: kernels run for 98 % of the time with one answer a question (G1), for 93 % with eight to prompts
of 600 tokens (L8).

Letters: T tokens, R rows, D hidden size, F intermediate size, H query heads, G key heads, d head
width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from fam_engine.config import Precision
from fam_engine.data.packing import PackedBatch
from fam_engine.errors import ModelRefusedError
from fam_engine.model import ops, products
from fam_engine.model.config import ModelConfig
from fam_engine.model.rope import RopeTables, Tables
from fam_engine.model.segments import AttentionPlan
from fam_engine.model.varlen_plan import DeviceBatch, on_device, send
from fam_engine.model.weights import LayerWeights, Linear, Weights

# Queries [Q, H, d] and keys, then values [T, 2G, d] of a layer -> mixed values [Q, H * d].
Attend = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def check_ids(batch: PackedBatch, config: ModelConfig) -> None:
    """Make sure that the model has a row for every token of a batch, before a device is asked for it.

    Raises:
        ModelRefusedError: It has not: the tokenizer is another model's.
    """
    largest = int(max(batch.input_ids.max(), batch.targets.max(initial=0)))
    smallest = int(min(batch.input_ids.min(), batch.targets.min(initial=0)))
    if smallest < 0 or largest >= config.vocab_size:
        found = smallest if smallest < 0 else largest
        raise ModelRefusedError(
            f"the tokenizer gives the id {found}, the model has rows for {config.vocab_size}",
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
        exact: Whether a record's bits must not depend on its neighbours on a GPU either; see `exactness`.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        precision: Precision,
        compute_dtype: torch.dtype,
        device: torch.device,
        exact: bool = False,
    ) -> None:
        self.config = config
        self.weights = weights
        self.precision = precision
        self.compute_dtype = compute_dtype
        self.device = device
        self.exact = exact
        # A CPU needs no more for it than rows in multiples of 64.
        fixed_rows = products.FIXED_ROWS if exact and device.type != "cpu" else None
        self._scratch = products.Scratch(
            weights, dtype=compute_dtype, device=device, fixed_rows=fixed_rows
        )
        wide = torch.promote_types(compute_dtype, torch.float32)
        self._rope = RopeTables(config, dtype=wide, device=device)

    @property
    def num_parameters(self) -> int:
        """Return the number of the model's parameters, adapter aside; a tied head counts once."""
        tables = {id(table): table for table in (self.weights.embed_VD, self.weights.head_VD)}
        return (
            sum(map(_num_parameters, self.weights.linears()))
            + sum(table.numel() for table in tables.values())
            + sum(map(_num_norm_parameters, self.weights.layers))
            + self.weights.final_norm_D.numel()
        )

    def made_ready(self) -> Decoder:
        """Give the same model with each matrix kept as it is multiplied, adapter merged.

        The bits of its results are those of this decoder; it saves the making ready, batch after
        batch, and takes `ready_bytes` more memory.
        """
        return self.with_weights(products.made_ready(self.weights, dtype=self.compute_dtype))

    def with_weights(self, weights: Weights) -> Decoder:
        """Give the same model with weights of other values."""
        return Decoder(
            self.config,
            weights,
            precision=self.precision,
            compute_dtype=self.compute_dtype,
            device=self.device,
            exact=self.exact,
        )

    @property
    def ready_bytes(self) -> int:
        """Return the bytes `made_ready` takes beside the weights as they are."""
        return (
            products.num_unready(self.weights, dtype=self.compute_dtype)
            * self.compute_dtype.itemsize
        )

    @property
    def scratch(self) -> products.Scratch:
        """Return where it makes its matrices ready, for whoever computes between its batches."""
        return self._scratch

    def dense(self, linear: Linear) -> torch.Tensor:
        """Give one of its matrices as it is multiplied, adapter merged; valid until it computes again."""
        return self._scratch.dense(linear)

    def multiply(self, x: torch.Tensor, linear: Linear, features: slice) -> torch.Tensor:
        """Give rows [M, K] times one of its matrices, adapter merged, as a pass does; see `products.linear`."""
        return products.linear(x, linear, self._scratch, features=features)

    def multiply_add_(self, residual: torch.Tensor, x: torch.Tensor, linear: Linear) -> None:
        """Add such a product to residual [M, N], in place, as a pass does; see `products.linear_add_`."""
        products.linear_add_(residual, x, linear, self._scratch)

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
            rows_R = given.rows if is_last else None
            x_TD = self._layer(layer, x_TD, tables[index], attend, rows_R)
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

    def rope_tables(self, num_positions: int) -> Tables:
        """Give cos and sin [N, d / 2] of all positions below `num_positions`, or more."""
        return self._rope.tables(num_positions)

    @torch.inference_mode()
    def hidden_next(
        self,
        input_ids_R: torch.Tensor,
        position_ids_R: torch.Tensor,
        attend: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        rope: Tables,
    ) -> torch.Tensor:
        """Compute one more token of each of R sequences. Nothing in it waits for a GPU.

        Args:
            input_ids_R: int[R] on the device, R a multiple of 64; fewer on a GPU, of NF4 matrices.
            position_ids_R: int[R], the place of each in its sequence.
            attend: Layer index, turned queries [R, H, d], turned keys, then values [R, 2G, d] of
                these tokens -> mixed values [R, H * d] over all the sequences' keys.
            rope: From `rope_tables`, for all these places.

        Returns:
            hidden_RD as from `hidden_rows`.
        """
        tables = self._rope.of_layers(position_ids_R, rope)
        x_RD = self.weights.embed_VD[input_ids_R].to(self.compute_dtype)
        for index, layer in enumerate(self.weights.layers):
            x_RD = self._layer(layer, x_RD, tables[index], partial(attend, index), None)
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
        x_QD = self._attention(layer, x_TD, tables, attend, rows_R)
        normed_QD = ops.rmsnorm(x_QD, layer.post_norm_D, eps=self.config.rms_norm_eps)
        activated = products.linear_swiglu(normed_QD, layer.gate_up, self._scratch)
        products.linear_add_(x_QD, activated, layer.down, self._scratch)
        return x_QD

    def _attention(
        self,
        layer: LayerWeights,
        x_TD: torch.Tensor,
        tables: Tables,
        attend: Attend,
        rows_R: torch.Tensor | None,
    ) -> torch.Tensor:
        """Add what tokens see of each other; apart, so that its tensors are gone when the MLP begins."""
        normed_TD = ops.rmsnorm(x_TD, layer.input_norm_D, eps=self.config.rms_norm_eps)
        query_QHd, kv_TG2d = self._heads(layer, normed_TD, tables, rows_R)
        del normed_TD
        mixed = attend(query_QHd, kv_TG2d)
        x_QD = x_TD if rows_R is None else x_TD[rows_R]
        products.linear_add_(x_QD, mixed, layer.o, self._scratch)
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
            qkv = products.linear(normed_TD, layer.qkv, self._scratch).unflatten(1, (-1, width))
            ops.qk_norm_rope(qkv[:, : heads + num_keys], cos_Td, sin_Td, norms=norms)
            return qkv[:, :heads], qkv[:, heads:]
        cut = heads * width
        query, kv = (
            products.linear(x, layer.qkv, self._scratch, features=part).unflatten(1, (-1, width))
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
