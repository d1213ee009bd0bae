"""From a layer's input to queries, keys and values, and their gradients back to it.

In: x [T, D]. Out: the products with q, k, v; of these what attention reads (normed head by head in
Qwen3, turned by position). In the last layer queries are those of the rows that predict, so q is
multiplied on its own there, as it is in `forward`: its adapter then sees those rows only.

What is kept for the backward pass are the products, turned already unless the heads are normed: a
norm's gradient needs what went into it, so norm and turn are then made again.

Letters: T tokens, R rows, D hidden size, H query heads, G key heads, d head width; Q queries, T or R;
N heads of a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from fam_engine.model import ops
from fam_engine.model.config import ModelConfig
from fam_engine.model.rope import Tables
from fam_engine.model.training.attention import Attention
from fam_engine.model.training.augmented import AugmentedLinear
from fam_engine.model.training.batch import ChosenRows
from fam_engine.model.training.forward import QKV
from fam_engine.model.training.functions import Dropout
from fam_engine.model.weights import LayerWeights

# Heads of each product: queries, keys and values [T, H + 2G, d]; or queries [R, H, d] and keys, then
# values [T, 2G, d].
Products: TypeAlias = list[torch.Tensor]


@dataclass(frozen=True)
class LayerBatch:
    """What one layer needs to know of the batch.

    Attributes:
        attention: Its attention.
        tables: Its rotary tables, cos and sin [_, d / 2] in fp32 or wider, for the rows of each product.
        chosen: Which tokens go on after keys and values; None: all.
        dropout: What to leave out of LoRA's inputs.
    """

    attention: Attention
    tables: list[Tables]
    chosen: ChosenRows | None
    dropout: Dropout


@dataclass
class HeadGradients:
    """Memory for the gradients of what attention read, then of the products.

    Attributes:
        heads: Of each product, in attention's dtype.
        beside: [dY dS] of each matrix, whose dY are `heads`; none where attention has another dtype.
    """

    heads: Products
    beside: list[torch.Tensor]


class Heads:
    """The part of one layer before its attention.

    Args:
        config: The model's shape.
        weights: The layer's.
        rows_only: Whether it has queries for the rows only, as the last layer has.
        dtype: The compute dtype.
    """

    def __init__(
        self, config: ModelConfig, weights: LayerWeights, *, rows_only: bool, dtype: torch.dtype
    ) -> None:
        self._eps = config.rms_norm_eps
        self._width = config.head_dim
        self._num_queries = config.num_attention_heads
        self._norm_D = weights.input_norm_D
        num_keys, cut = config.num_key_value_heads, config.num_attention_heads * config.head_dim
        norms = None
        if weights.q_norm is not None and weights.k_norm is not None:
            norms = ops.HeadNorms(weights.q_norm, weights.k_norm, self._num_queries, self._eps)
        self._is_normed = norms is not None
        if rows_only:
            features: tuple[slice, ...] = (slice(0, cut), slice(cut, None))
            self._turned: tuple[int, ...] = (self._num_queries, num_keys)
            of_keys = norms and replace(norms, num_query_heads=0)
            self._norms: tuple[ops.HeadNorms | None, ...] = (norms, of_keys)
        else:
            features = (slice(None),)
            self._turned = (self._num_queries + num_keys,)
            self._norms = (norms,)
        self.linears = tuple(AugmentedLinear(weights.qkv, part, dtype=dtype) for part in features)

    def forward(self, x_TD: torch.Tensor, call: LayerBatch, scratch: torch.Tensor) -> Products:
        """Give the products, turned unless the heads are normed."""
        inputs, _ = self._inputs(x_TD, call)
        products = [
            linear.forward(xs, scratch).unflatten(1, (-1, self._width))
            for linear, xs in zip(self.linears, inputs, strict=True)
        ]
        if not self._is_normed:
            for heads, tables, _ in self._turns(products, call):
                ops.qk_norm_rope(heads, *tables, norms=None)
        return products

    def ready(self, products: Products, call: LayerBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Give queries [Q, H, d] and keys, then values [T, 2G, d] as attention reads them.

        What `forward` gave stays as it is.
        """
        if self._is_normed:
            made, products = products, [torch.empty_like(product) for product in products]
            for product, ready, num_turned in zip(made, products, self._turned, strict=True):
                ready[:, num_turned:] = product[:, num_turned:]
            turns = zip(self._turns(made, call), self._turns(products, call), strict=True)
            for (heads, tables, norms), (out, _, _) in turns:
                ops.qk_norm_rope(heads, *tables, norms=norms, out_TNd=out)
        return self.split(products)

    def split(self, products: Products) -> tuple[torch.Tensor, torch.Tensor]:
        """Give queries, and keys, then values."""
        if len(products) == 1:
            return products[0][:, : self._num_queries], products[0][:, self._num_queries :]
        query, kv = products
        return query, kv

    def new_gradients(self, products: Products, dtype: torch.dtype) -> HeadGradients:
        """Give memory for gradients of the products, which attention makes in `dtype`."""
        if dtype != products[0].dtype:
            return HeadGradients([x.new_empty(x.shape, dtype=dtype) for x in products], [])
        beside = self._new_beside(products)
        heads = [
            dys[:, : linear.out_features].unflatten(1, (-1, self._width))
            for linear, dys in zip(self.linears, beside, strict=True)
        ]
        return HeadGradients(heads, beside)

    def backward(
        self,
        gradients: HeadGradients,
        products: Products,
        x_TD: torch.Tensor,
        call: LayerBatch,
        scratch: torch.Tensor,
        *,
        residual_QD: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Add to the adapters' gradients; give that of x.

        Args:
            gradients: Of what attention read; used up.
            products: What `forward` gave.
            x_TD: What it was given.
            call: As there.
            scratch: As there.
            residual_QD: The gradient that went past attention, to be added to that of x; used up.
                None: that of x is not wanted.
        """
        beside = self._to_products(gradients, products, call)
        inputs, rstd_T = self._inputs(x_TD, call)
        dropout = call.dropout.of(QKV)
        dnormed = []
        for linear in self.linears:
            dys, xs = beside.pop(0), inputs.pop(0)
            linear.write_inner_gradient(dys, linear.inner(xs))
            linear.add_A_gradients(xs, dys, dropout)
            del xs
            if residual_QD is not None:
                dnormed.append(linear.input_gradient(dys, scratch, dropout))
            del dys
        if residual_QD is None:
            return None
        residual_TD = residual_QD
        if call.chosen is not None:
            dnormed, residual_TD = self._to_tokens(dnormed, residual_QD, call.chosen, like=x_TD)
        ops.add_rmsnorm_backward(
            dnormed.pop(), x_TD, self._norm_D, rstd_T, grad_residual=residual_TD
        )
        return residual_TD.to(x_TD.dtype)

    def _to_tokens(
        self,
        dnormed: list[torch.Tensor],
        residual_QD: torch.Tensor,
        chosen: ChosenRows,
        *,
        like: torch.Tensor,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Give gradients of the rows as those of all tokens, and add those by keys and values."""
        # Sums of a row chosen several times are made wide, and rounded once.
        wide = torch.promote_types(like.dtype, torch.float32)
        dnormed_TD, residual_TD = like.new_empty((2, *like.shape), dtype=wide)
        chosen.sums.write(dnormed[0], out_T=dnormed_TD)
        chosen.sums.write(residual_QD, out_T=residual_TD)
        return [dnormed_TD.add_(dnormed[1])], residual_TD

    def _inputs(
        self, x_TD: torch.Tensor, call: LayerBatch
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Give the normed input with S beside it for each of the matrices, and 1 / rms of x [T]."""
        dropout = call.dropout.of(QKV)
        linear, width = self.linears[-1], x_TD.shape[1]
        xs = linear.new_input(x_TD.shape[0], x_TD)
        rstd_T = normed_into(x_TD, self._norm_D, eps=self._eps, out=xs[:, :width])
        linear.write_inner(xs, dropout)
        if call.chosen is None:
            return [xs], rstd_T
        chosen = self.linears[0].new_input(len(call.chosen.rows_R), x_TD)
        chosen[:, :width] = xs[call.chosen.rows_R, :width]
        self.linears[0].write_inner(chosen, dropout)
        return [chosen, xs], rstd_T

    def _turns(
        self, products: Products, call: LayerBatch
    ) -> Iterator[tuple[torch.Tensor, Tables, ops.HeadNorms | None]]:
        """Yield the queries and keys of each product, their tables, and how they are normed."""
        turned = zip(products, self._turned, call.tables, self._norms, strict=True)
        for product, num_turned, tables, norms in turned:
            yield product[:, :num_turned], tables, norms

    def _to_products(
        self, gradients: HeadGradients, products: Products, call: LayerBatch
    ) -> list[torch.Tensor]:
        """Make gradients after turn and norm those before; give them as dY of [dY dS]."""
        before = self._turns(products, call)
        for (made, _, _), (heads, tables, norms) in zip(
            before, self._turns(gradients.heads, call), strict=True
        ):
            x = made if self._is_normed else None
            ops.qk_norm_rope_backward(heads, x, *tables, norms=norms)
        if gradients.beside:
            return gradients.beside
        beside = self._new_beside(products)
        for linear, dys in zip(self.linears, beside, strict=True):
            dys[:, : linear.out_features] = gradients.heads.pop(0).flatten(1)
        return beside

    def _new_beside(self, products: Products) -> list[torch.Tensor]:
        """Give memory for [dY dS] of each matrix."""
        return [
            linear.new_output(product.shape[0], product)
            for linear, product in zip(self.linears, products, strict=True)
        ]


def normed_into(
    x_TD: torch.Tensor, weight: torch.Tensor, *, eps: float, out: torch.Tensor
) -> torch.Tensor:
    """Write the norm of x [T, D] to `out`, whose rows may be longer; give 1 / rms of each row, [T]."""
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    rstd_T = torch.empty(x_TD.shape[0], dtype=wide, device=x_TD.device)
    ops.add_rmsnorm(x_TD, None, weight, eps=eps, out=out, rstd=rstd_T)
    return rstd_T
