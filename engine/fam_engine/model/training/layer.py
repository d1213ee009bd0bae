"""One decoder layer forward and backward, written out: no autograd, memory by a policy.

In: the layer's input, what it must know of the batch. Out: its output and what it keeps; then, from
the gradient of the output, that of the input, and gradients added to A and B in a fixed order.

What is kept is decided layer by layer. WHOLE: input, products of q, k, v, mixed values with the
logsumexp of their scores, the stream between attention and MLP, gate and up; only norms and the
activation are made again. INPUT: the input alone; all of that is made again, but for the product with
`down`, whose result no gradient asks for. What is made again has the bits of what was thrown away, so
the policy changes no bit of any gradient.

Buffers are used twice where that makes the peak smaller: gate and up become their gradients, the
gradient of the activation becomes the activation.

Letters: T tokens, Q queries (T, in the last layer the R rows that predict), D hidden size, F
intermediate size, H query heads, G key heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from fam_engine.model import ops
from fam_engine.model.config import ModelConfig
from fam_engine.model.training.attention import Logsumexps, attend, attend_backward
from fam_engine.model.training.augmented import AugmentedLinear
from fam_engine.model.training.elementwise import (
    rmsnorm_backward,
    rmsnorm_into,
    swiglu_backward_,
)
from fam_engine.model.training.forward import DOWN, GATE_UP, O_PROJ, LayerCall
from fam_engine.model.training.heads import Heads, Positions, QueryAndKV
from fam_engine.model.weights import LayerWeights


class Keep(Enum):
    """What a layer keeps for its backward pass."""

    WHOLE = "whole"
    INPUT = "input"


@dataclass
class Activations:
    """What the backward pass reads, beside the input; it gives up what it has done with.

    Attributes:
        heads: Products of q, k, v as `Heads.forward` gives them.
        mixed: [Q, H * d + ranks]: mixed values, and S of o beside them.
        logsumexps: Of their scores.
        x_QD: The stream between attention and MLP.
        gate_up: [Q, 2F + ranks]: gate and up, with room for dS; overwritten, then given up.
    """

    heads: QueryAndKV
    mixed: torch.Tensor
    logsumexps: Logsumexps
    x_QD: torch.Tensor
    gate_up: torch.Tensor


@dataclass(frozen=True)
class Kept:
    """What a layer keeps: its input [T, D], and all the rest or nothing."""

    x_TD: torch.Tensor
    activations: Activations | None


class TrainingLayer:
    """One layer with adapters to train.

    Args:
        config: The model's shape.
        weights: The layer's, the adapters' matrices leaves.
        index: Which layer.
        attention_dtype: What attention is computed in.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: LayerWeights,
        *,
        index: int,
        attention_dtype: torch.dtype,
    ) -> None:
        self._eps = config.rms_norm_eps
        self._head_shape = (config.num_attention_heads, config.head_dim)
        self._is_first = index == 0
        self._attention_dtype = attention_dtype
        self._post_norm_D = weights.post_norm_D
        self._heads = Heads(config, weights, rows_only=index == config.num_layers - 1)
        self._o = AugmentedLinear(weights.o)
        self._gate_up = AugmentedLinear(weights.gate_up)
        self._down = AugmentedLinear(weights.down)
        self.linears = (*self._heads.linears, self._o, self._gate_up, self._down)

    def forward(
        self,
        x_TD: torch.Tensor,
        positions: Positions,
        call: LayerCall,
        scratch: torch.Tensor,
        *,
        keep: Keep,
    ) -> tuple[torch.Tensor, Kept]:
        """Give the layer's output [Q, D], and what is to be handed to `backward`.

        Args:
            x_TD: Its input.
            positions: The batch's.
            call: What to know of the batch.
            scratch: Memory for one of `linears` at a time.
            keep: The policy.
        """
        made = self._activations(x_TD, positions, call, scratch)
        dropout = call.dropout.of(DOWN)
        hidden = self._down.new_input(made.x_QD.shape[0], x_TD)
        ops.swiglu(self._gate_and_up(made), out=hidden[:, : self._down.in_features])
        self._down.write_inner(hidden, dropout)
        out = self._down.forward(hidden, scratch, residual=made.x_QD)
        return out, Kept(x_TD, made if keep is Keep.WHOLE else None)

    def backward(
        self,
        dout_QD: torch.Tensor,
        kept: Kept,
        positions: Positions,
        call: LayerCall,
        scratch: torch.Tensor,
    ) -> torch.Tensor | None:
        """Add to the gradients of the adapters; give that of the input [T, D].

        Args:
            dout_QD: The gradient of the output.
            kept: What `forward` gave; used up.
            positions: As there.
            call: As there.
            scratch: As there.

        Returns:
            The gradient, or None of the first layer, whose input is the frozen embedding.
        """
        made = kept.activations or self._activations(kept.x_TD, positions, call, scratch)
        dx_QD = self._mlp_backward(dout_QD, made, call, scratch)
        return self._heads.backward(
            self._attention_backward(dx_QD, made, positions, call, scratch),
            made.heads,
            kept.x_TD,
            positions,
            call,
            scratch,
            residual_QD=None if self._is_first else dx_QD,
        )

    # -- forward -------------------------------------------------------------------------------

    def _activations(
        self, x_TD: torch.Tensor, positions: Positions, call: LayerCall, scratch: torch.Tensor
    ) -> Activations:
        """Run the layer up to gate and up."""
        heads = self._heads.forward(x_TD, positions, call, scratch)
        query, kv = self._ready(heads, positions, call)
        mixed = self._o.new_input(query.shape[0], x_TD)
        logsumexps = attend(query, kv, call.runs, out_QHd=self._mixed_heads(mixed))
        self._o.write_inner(mixed, call.dropout.of(O_PROJ))
        residual = x_TD if call.rows is None else x_TD[torch.from_numpy(call.rows).to(x_TD.device)]
        x_QD = self._o.forward(mixed, scratch, residual=residual)
        normed = self._normed(x_QD, call)
        gate_up = self._gate_up.new_output(x_QD.shape[0], x_TD)
        made = Activations(heads, mixed, logsumexps, x_QD, gate_up)
        self._gate_up.forward(normed, scratch, out=self._gate_and_up(made))
        return made

    def _normed(self, x_QD: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """Give the normed input of the MLP with S beside it."""
        normed = self._gate_up.new_input(x_QD.shape[0], x_QD)
        rmsnorm_into(x_QD, self._post_norm_D, eps=self._eps, out=normed[:, : x_QD.shape[1]])
        self._gate_up.write_inner(normed, call.dropout.of(GATE_UP))
        return normed

    def _ready(self, heads: QueryAndKV, positions: Positions, call: LayerCall) -> QueryAndKV:
        """Give queries, and keys and values, as attention reads them."""
        query, kv = self._heads.ready(heads, positions, call)
        return query.to(self._attention_dtype), kv.to(self._attention_dtype)

    def _mixed_heads(self, mixed: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = mixed[:, : self._o.in_features].unflatten(1, self._head_shape)
        return heads

    def _gate_and_up(self, made: Activations) -> torch.Tensor:
        return made.gate_up[:, : self._gate_up.out_features]

    # -- backward ------------------------------------------------------------------------------

    def _mlp_backward(
        self, dout_QD: torch.Tensor, made: Activations, call: LayerCall, scratch: torch.Tensor
    ) -> torch.Tensor:
        """Give the gradient of the stream between attention and MLP."""
        down, gate_up, dropout = self._down, self._gate_up, call.dropout.of(DOWN)
        dys = _beside_inner(down, dout_QD)
        hidden = down.new_input(dout_QD.shape[0], dout_QD)
        values = hidden[:, : down.in_features]
        down.input_gradient(dys, scratch, dropout, out=values)
        swiglu_backward_(values, self._gate_and_up(made))
        down.write_inner(hidden, dropout)
        down.add_gradients(hidden, dys, dropout)
        del dys, hidden, values
        dropout = call.dropout.of(GATE_UP)
        gate_up.write_inner_gradient(made.gate_up)
        gate_up.add_gradients(self._normed(made.x_QD, call), made.gate_up, dropout)
        dnormed = gate_up.input_gradient(made.gate_up, scratch, dropout)
        del made.gate_up
        return rmsnorm_backward(
            dnormed, made.x_QD, self._post_norm_D, eps=self._eps, residual=dout_QD
        )

    def _attention_backward(
        self,
        dx_QD: torch.Tensor,
        made: Activations,
        positions: Positions,
        call: LayerCall,
        scratch: torch.Tensor,
    ) -> QueryAndKV:
        """Give the gradients of what attention read, in its dtype."""
        dropout = call.dropout.of(O_PROJ)
        dys = _beside_inner(self._o, dx_QD)
        self._o.add_gradients(made.mixed, dys, dropout)
        dmixed = self._o.input_gradient(dys, scratch, dropout).unflatten(1, self._head_shape)
        query, kv = self._ready(made.heads, positions, call)
        return attend_backward(
            dmixed.to(self._attention_dtype),
            query,
            kv,
            self._mixed_heads(made.mixed).to(self._attention_dtype),
            made.logsumexps,
            call.runs,
        )


def _beside_inner(linear: AugmentedLinear, dy: torch.Tensor) -> torch.Tensor:
    """Give [dY dS]."""
    dys = linear.new_output(dy.shape[0], dy)
    dys[:, : linear.out_features] = dy
    linear.write_inner_gradient(dys)
    return dys
