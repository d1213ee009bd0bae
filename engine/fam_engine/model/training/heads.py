"""From a layer's input to queries, keys and values, and their gradients back to it.

In: x [T, D]. Out: the products with q, k, v; of these what attention reads (normed head by head in
Qwen3, turned by position). In the last layer queries are those of the rows that predict, so q is
multiplied on its own there, as it is in `forward`: its adapter then sees those rows only.

What is kept for the backward pass are the products, turned already unless the heads are normed: a
norm's gradient needs what went into it, so norm and turn are then made again.

Letters: T tokens, R rows, D hidden size, H query heads, G key heads, d head width; Q queries, T or R.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

from fam_engine.model import ops
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Tables
from fam_engine.model.training.augmented import AugmentedLinear
from fam_engine.model.training.elementwise import rmsnorm_backward, rmsnorm_into
from fam_engine.model.training.forward import QKV, LayerCall
from fam_engine.model.training.functions import add_rows_
from fam_engine.model.weights import LayerWeights

# Queries [Q, H, d] and keys, then values [T, 2G, d].
QueryAndKV: TypeAlias = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Positions:
    """The rotary tables of a batch, cos and sin [_, d / 2] in fp32 or wider.

    Attributes:
        all: Of the T tokens.
        rows: Of the R rows that predict.
    """

    all: Tables
    rows: Tables

    def of_queries(self, call: LayerCall) -> Tables:
        """Give those of a layer's queries."""
        return self.all if call.rows is None else self.rows


class Heads:
    """The part of one layer before its attention.

    Args:
        config: The model's shape.
        weights: The layer's.
        rows_only: Whether it has queries for the rows only, as the last layer has.
    """

    def __init__(self, config: ModelConfig, weights: LayerWeights, *, rows_only: bool) -> None:
        self._eps = config.rms_norm_eps
        self._width = config.head_dim
        self._num_keys = config.num_key_value_heads
        self._num_queries = config.num_attention_heads
        self._norm_D = weights.input_norm_D
        self._q_norm, self._k_norm = weights.q_norm, weights.k_norm
        cut = config.num_attention_heads * config.head_dim
        features = (slice(0, cut), slice(cut, None)) if rows_only else (slice(None),)
        self.linears = tuple(AugmentedLinear(weights.qkv, part) for part in features)

    def forward(
        self, x_TD: torch.Tensor, positions: Positions, call: LayerCall, scratch: torch.Tensor
    ) -> QueryAndKV:
        """Give the products, turned unless the heads are normed."""
        products = [
            linear.forward(xs, scratch).unflatten(1, (-1, self._width))
            for linear, xs in zip(self.linears, self._inputs(x_TD, call), strict=True)
        ]
        if len(products) == 1:
            products = [products[0][:, : self._num_queries], products[0][:, self._num_queries :]]
        query, kv = products
        if self._q_norm is None:
            self._turn_(query, kv, positions, call)
        return query, kv

    def ready(self, made: QueryAndKV, positions: Positions, call: LayerCall) -> QueryAndKV:
        """Give what attention reads, from what `forward` gave, which stays as it is."""
        if self._q_norm is None or self._k_norm is None:
            return made
        query = ops.rmsnorm(made[0], self._q_norm, eps=self._eps)
        kv = made[1].clone()
        kv[:, : self._num_keys] = ops.rmsnorm(
            made[1][:, : self._num_keys], self._k_norm, eps=self._eps
        )
        self._turn_(query, kv, positions, call)
        return query, kv

    def backward(
        self,
        gradients: QueryAndKV,
        made: QueryAndKV,
        x_TD: torch.Tensor,
        positions: Positions,
        call: LayerCall,
        scratch: torch.Tensor,
        *,
        residual_QD: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Add to the adapters' gradients; give that of x.

        Args:
            gradients: Of what attention read, in its dtype; overwritten.
            made: What `forward` gave.
            x_TD: What it was given.
            positions: As there.
            call: As there.
            scratch: As there.
            residual_QD: The gradient that went past attention, to be added to that of x. None: that
                of x is not wanted.
        """
        parts = self._gradients_of_products(gradients, made, positions, call)
        groups = [parts] if len(self.linears) == 1 else [(part,) for part in parts]
        inputs = self._inputs(x_TD, call)
        del gradients, parts
        dnormed = []
        for linear in self.linears:
            dys = self._beside_inner(linear, groups.pop(0), like=x_TD)
            linear.add_gradients(inputs.pop(0), dys, call.dropout.of(QKV))
            if residual_QD is not None:
                dnormed.append(linear.input_gradient(dys, scratch, call.dropout.of(QKV)))
            del dys
        if residual_QD is None:
            return None
        if call.rows is None:
            return self._norm_backward(dnormed[0], x_TD, residual_QD)
        # Sums of a row chosen several times are made wide, and rounded once.
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        dnormed_TD, residual_TD = dnormed[1].to(wide), torch.zeros_like(x_TD, dtype=wide)
        add_rows_(dnormed_TD, call.rows, dnormed[0])
        add_rows_(residual_TD, call.rows, residual_QD)
        return self._norm_backward(dnormed_TD, x_TD, residual_TD)

    def _inputs(self, x_TD: torch.Tensor, call: LayerCall) -> list[torch.Tensor]:
        """Give the normed input with S beside it for each of the matrices."""
        dropout = call.dropout.of(QKV)
        linear, width = self.linears[-1], x_TD.shape[1]
        xs = linear.new_input(x_TD.shape[0], x_TD)
        rmsnorm_into(x_TD, self._norm_D, eps=self._eps, out=xs[:, :width])
        linear.write_inner(xs, dropout)
        if call.rows is None:
            return [xs]
        chosen = self.linears[0].new_input(len(call.rows), x_TD)
        chosen[:, :width] = xs[torch.from_numpy(call.rows).to(xs.device), :width]
        self.linears[0].write_inner(chosen, dropout)
        return [chosen, xs]

    def _turn_(
        self,
        query: torch.Tensor,
        kv: torch.Tensor,
        positions: Positions,
        call: LayerCall,
        *,
        back: bool = False,
    ) -> None:
        """Turn queries and keys by their positions, or back, in place."""
        keys = kv[:, : self._num_keys]
        for x, (cos, sin) in ((query, positions.of_queries(call)), (keys, positions.all)):
            ops.rope_(x, cos, -sin if back else sin)

    def _gradients_of_products(
        self, gradients: QueryAndKV, made: QueryAndKV, positions: Positions, call: LayerCall
    ) -> QueryAndKV:
        """Give the gradients before turn and norm from those after; these are overwritten."""
        dquery, dkv = gradients
        self._turn_(dquery, dkv, positions, call, back=True)
        if self._q_norm is None or self._k_norm is None:
            return dquery, dkv
        keys = slice(self._num_keys)
        dkv[:, keys] = rmsnorm_backward(dkv[:, keys], made[1][:, keys], self._k_norm, eps=self._eps)
        return rmsnorm_backward(dquery, made[0], self._q_norm, eps=self._eps), dkv

    def _beside_inner(
        self, linear: AugmentedLinear, parts: tuple[torch.Tensor, ...], *, like: torch.Tensor
    ) -> torch.Tensor:
        """Give [dY dS], dY being gradients of heads side by side."""
        dys = linear.new_output(parts[0].shape[0], like)
        first = 0
        for part in parts:
            stop = first + part.shape[1] * self._width
            dys[:, first:stop] = part.flatten(1)
            first = stop
        linear.write_inner_gradient(dys)
        return dys

    def _norm_backward(
        self, dnormed: torch.Tensor, x_TD: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        return rmsnorm_backward(dnormed, x_TD, self._norm_D, eps=self._eps, residual=residual)
