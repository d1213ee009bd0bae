"""One decoder layer forward and backward, written out: no autograd, memory by a policy.

In: the layer's input, what it must know of the batch. Out: its output and what it keeps; then, from
the gradient of the output, that of the input, and gradients added to A and B in a fixed order. The input itself is
kept by whoever walks through the layers (`layer_inputs`).

What is kept is decided layer by layer. WHOLE: input, products of q, k, v, mixed values with the
logsumexp of their scores, the stream between attention and MLP, gate and up; only norms and the
activation are made again. INPUT: the input alone; all of that is made again, but for the product with
`down`, whose result no gradient asks for. Both keep S of `down`, a few values a token: its gradients
then take one reading of that of the output, before the activation is there again. What is made again
has the bits of what was thrown away, so the policy changes no bit of any gradient.

Buffers are used twice where that makes the peak smaller: gate and up become their gradients, the
gradient of the activation becomes the activation, that of the stream that of the layer's input.

Letters: T tokens, Q queries (T, in the last layer the R rows that predict), D hidden size, F
intermediate size, H query heads, G key heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from fam_engine.model import ops
from fam_engine.model.config import ModelConfig
from fam_engine.model.training.attention import Logsumexps
from fam_engine.model.training.augmented import AugmentedLinear
from fam_engine.model.training.forward import DOWN, GATE_UP, O_PROJ
from fam_engine.model.training.heads import (
    HeadGradients,
    Heads,
    LayerBatch,
    Products,
    normed_into,
)
from fam_engine.model.weights import LayerWeights


class Keep(Enum):
    """What a layer keeps for its backward pass."""

    WHOLE = "whole"
    INPUT = "input"


@dataclass
class Activations:
    """What the backward pass reads, beside the input; it gives up what it has done with.

    Attributes:
        products: Of q, k, v as `Heads.forward` gives them.
        mixed: [Q, H * d + ranks]: mixed values, and S of o beside them.
        logsumexps: Of their scores.
        x_QD: The stream between attention and MLP.
        gate_up: [Q, 2F + ranks]: gate and up, with room for dS; overwritten, then given up.
    """

    products: Products
    mixed: torch.Tensor
    logsumexps: Logsumexps
    x_QD: torch.Tensor
    gate_up: torch.Tensor


@dataclass(frozen=True)
class Kept:
    """What a layer keeps beside its input: S of `down` [Q, ranks], and all the rest or nothing."""

    inner_down: torch.Tensor
    activations: Activations | None


class TrainingLayer:
    """One layer with adapters to train.

    Args:
        config: The model's shape.
        weights: The layer's, the adapters' matrices leaves.
        index: Which layer.
        dtype: The compute dtype.
        attention_dtype: What attention is computed in.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: LayerWeights,
        *,
        index: int,
        dtype: torch.dtype,
        attention_dtype: torch.dtype,
    ) -> None:
        self._eps = config.rms_norm_eps
        self._head_shape = (config.num_attention_heads, config.head_dim)
        self._is_first = index == 0
        self._attention_dtype = attention_dtype
        self._post_norm_D = weights.post_norm_D
        is_last = index == config.num_layers - 1
        self._heads = Heads(config, weights, rows_only=is_last, dtype=dtype)
        self._o, self._gate_up, self._down = (
            AugmentedLinear(linear, dtype=dtype)
            for linear in (weights.o, weights.gate_up, weights.down)
        )
        self.linears = (*self._heads.linears, self._o, self._gate_up, self._down)

    def forward(
        self, x_TD: torch.Tensor, call: LayerBatch, scratch: torch.Tensor, *, keep: Keep
    ) -> tuple[torch.Tensor, Kept]:
        """Give the layer's output [Q, D], and what is to be handed to `backward`.

        Args:
            x_TD: Its input.
            call: What to know of the batch.
            scratch: Memory for one of `linears` at a time.
            keep: The policy.
        """
        made = self._activations(x_TD, call, scratch)
        hidden = self._down.new_input(made.x_QD.shape[0], x_TD)
        ops.swiglu(self._gate_and_up(made), out=hidden[:, : self._down.in_features])
        self._down.write_inner(hidden, call.dropout.of(DOWN))
        out = self._down.forward(hidden, scratch, residual=made.x_QD)
        inner_down = self._down.inner(hidden).clone()
        return out, Kept(inner_down, made if keep is Keep.WHOLE else None)

    def backward(
        self,
        dout_QD: torch.Tensor,
        x_TD: torch.Tensor,
        kept: Kept,
        call: LayerBatch,
        scratch: torch.Tensor,
    ) -> torch.Tensor | None:
        """Add to the gradients of the adapters; give that of the input [T, D].

        Args:
            dout_QD: The gradient of the output; used up.
            x_TD: The layer's input.
            kept: What `forward` gave; used up.
            call: As there.
            scratch: As there.

        Returns:
            The gradient, or None of the first layer, whose input is the frozen embedding.
        """
        made = kept.activations or self._activations(x_TD, call, scratch)
        self._mlp_backward_(dout_QD, made, kept.inner_down, call, scratch)
        gradients = self._attention_backward(dout_QD, made, call, scratch)
        return self._heads.backward(
            gradients,
            made.products,
            x_TD,
            call,
            scratch,
            residual_QD=None if self._is_first else dout_QD,
        )

    # -- forward -------------------------------------------------------------------------------

    def _activations(
        self, x_TD: torch.Tensor, call: LayerBatch, scratch: torch.Tensor
    ) -> Activations:
        """Run the layer up to gate and up."""
        products = self._heads.forward(x_TD, call, scratch)
        query, kv = self._ready(products, call)
        mixed = self._o.new_input(query.shape[0], x_TD)
        logsumexps = call.attention.forward(query, kv, out_QHd=self._mixed_heads(mixed))
        self._o.write_inner(mixed, call.dropout.of(O_PROJ))
        residual = x_TD if call.chosen is None else x_TD[call.chosen.rows_R]
        x_QD = self._o.forward(mixed, scratch, residual=residual)
        normed, _ = self._normed(x_QD, call)
        gate_up = self._gate_up.new_output(x_QD.shape[0], x_TD)
        made = Activations(products, mixed, logsumexps, x_QD, gate_up)
        self._gate_up.forward(normed, scratch, out=self._gate_and_up(made))
        return made

    def _normed(self, x_QD: torch.Tensor, call: LayerBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the normed input of the MLP with S beside it, and 1 / rms of x [Q]."""
        normed = self._gate_up.new_input(x_QD.shape[0], x_QD)
        values = normed[:, : x_QD.shape[1]]
        rstd_Q = normed_into(x_QD, self._post_norm_D, eps=self._eps, out=values)
        self._gate_up.write_inner(normed, call.dropout.of(GATE_UP))
        return normed, rstd_Q

    def _ready(self, products: Products, call: LayerBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Give queries, and keys and values, as attention reads them."""
        query, kv = self._heads.ready(products, call)
        return query.to(self._attention_dtype), kv.to(self._attention_dtype)

    def _mixed_heads(self, mixed: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = mixed[:, : self._o.in_features].unflatten(1, self._head_shape)
        return heads

    def _gate_and_up(self, made: Activations) -> torch.Tensor:
        return made.gate_up[:, : self._gate_up.out_features]

    # -- backward ------------------------------------------------------------------------------

    def _mlp_backward_(
        self,
        dout_QD: torch.Tensor,
        made: Activations,
        inner_down: torch.Tensor,
        call: LayerBatch,
        scratch: torch.Tensor,
    ) -> None:
        """Make the gradient of the output that of the stream between attention and MLP."""
        down, gate_up, dropout = self._down, self._gate_up, call.dropout.of(DOWN)
        dys = _beside_inner(down, dout_QD, inner_down)
        hidden = down.new_input(dout_QD.shape[0], dout_QD)
        values = hidden[:, : down.in_features]
        down.input_gradient(dys, scratch, dropout, out=values)
        ops.swiglu_backward(values, self._gate_and_up(made), out=values)
        down.add_A_gradients(hidden, dys, dropout)
        del dys, hidden, values
        dropout = call.dropout.of(GATE_UP)
        normed, rstd_Q = self._normed(made.x_QD, call)
        gate_up.write_inner_gradient(made.gate_up, gate_up.inner(normed))
        gate_up.add_A_gradients(normed, made.gate_up, dropout)
        del normed
        dnormed = gate_up.input_gradient(made.gate_up, scratch, dropout)
        del made.gate_up
        ops.add_rmsnorm_backward(
            dnormed, made.x_QD, self._post_norm_D, rstd_Q, grad_residual=dout_QD
        )

    def _attention_backward(
        self, dx_QD: torch.Tensor, made: Activations, call: LayerBatch, scratch: torch.Tensor
    ) -> HeadGradients:
        """Give the gradients of what attention read."""
        dropout = call.dropout.of(O_PROJ)
        dys = _beside_inner(self._o, dx_QD, self._o.inner(made.mixed))
        self._o.add_A_gradients(made.mixed, dys, dropout)
        dmixed = self._o.input_gradient(dys, scratch, dropout).unflatten(1, self._head_shape)
        del dys
        query, kv = self._ready(made.products, call)
        gradients = self._heads.new_gradients(made.products, self._attention_dtype)
        dquery, dkv = self._heads.split(gradients.heads)
        call.attention.backward(
            dmixed.to(self._attention_dtype),
            query,
            kv,
            self._mixed_heads(made.mixed).to(self._attention_dtype),
            made.logsumexps,
            dquery_QHd=dquery,
            dkv_TG2d=dkv,
        )
        return gradients


def _beside_inner(linear: AugmentedLinear, dy: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Give [dY dS], and add to the gradients of B by S."""
    dys = linear.new_output(dy.shape[0], dy)
    dys[:, : linear.out_features] = dy
    linear.write_inner_gradient(dys, inner)
    return dys
