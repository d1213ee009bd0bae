"""The decoder's operations as functions torch can differentiate.

In: activations that may have gradients, frozen weights. Out: new tensors; nothing is written in
place that a backward pass could still read.

Plain autograd wherever it will do: this is the reference by which hand-written gradients are
judged. Four operations have an `autograd.Function`: the frozen matrix (autograd would keep each
dequantized weight until the backward pass), the head (it would keep all logits), dropout (whose mask is
made again, not kept) and the choice of rows (torch adds up the gradients of a row chosen twice in an
order that changes from run to run; resuming bit by bit needs a fixed one).

Letters: M rows, N output features, K input features, R rows with a target, D hidden size,
H heads, d head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fam_engine.data.packing import Int32
from fam_engine.model import ops, products
from fam_engine.model.weights import Linear, LoraPart

Context: TypeAlias = Any  # what a forward pass keeps for its backward pass


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """Norm the last dimension; arithmetic in fp32 or wider, one rounding."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide * wide).mean(-1, keepdim=True).add(eps).rsqrt()
    return (wide * scale * weight.to(wide.dtype)).to(x.dtype)


def rope(x_MHd: torch.Tensor, cos_Md: torch.Tensor, sin_Md: torch.Tensor) -> torch.Tensor:
    """Turn each head by its position; cos and sin [M, d / 2] in fp32 or wider."""
    a, b = x_MHd.chunk(2, dim=-1)
    cos, sin = cos_Md[:, None], sin_Md[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_MHd.dtype)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Give silu(gate) * up of [M, 2F]; arithmetic in fp32 or wider, one rounding."""
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(gate_up.dtype)


def frozen_linear(
    x: torch.Tensor, weight: Linear, scratch: products.Scratch, *, features: slice = slice(None)
) -> torch.Tensor:
    """Give x @ W^T + bias, [M, N], W without its adapter; gradients flow to x only.

    Args:
        x: [M, K] in the compute dtype.
        weight: The matrix, of any precision.
        scratch: Where it is made ready, in the forward pass and again in the backward pass.
        features: Which output features to compute; all by default.
    """
    result: torch.Tensor = _FrozenLinear.apply(x, weight, scratch, features)
    return result


class _FrozenLinear(torch.autograd.Function):
    """y = x @ W^T + bias, so dx = dy @ W. Nothing is saved: W is a constant, made ready again."""

    @staticmethod
    def forward(
        ctx: Context, x: torch.Tensor, weight: Linear, scratch: products.Scratch, features: slice
    ) -> torch.Tensor:
        ctx.weight, ctx.scratch, ctx.features = weight, scratch, features
        return products.linear(x, weight, scratch, features=features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return grad @ ctx.scratch.dense(ctx.weight)[ctx.features], None, None, None


@dataclass(frozen=True)
class Dropout:
    """Which values of LoRA's inputs are left out.

    Every source matrix has a mask of its own, as in PEFT. A mask follows from seed and stream alone:
    computing a layer again gives the same one, and so does a resumed run, on any device.

    Attributes:
        rate: Probability of leaving a value out; 0: nothing is.
        seed: int64[1] on the device, the batch's, not negative.
        stream: Which layer, merged matrix and source in it.
    """

    rate: float
    seed: torch.Tensor
    stream: tuple[int, ...] = ()

    def of(self, part: int) -> Dropout:
        """Give the dropout of a part: a layer of the model, a matrix of the layer, a source."""
        return replace(self, stream=(*self.stream, part))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Leave values of [M, K] out and scale up the rest; differentiable."""
        if not self.rate:
            return x
        kept: torch.Tensor = _Masked.apply(x, self)
        return kept

    def masked(self, x: torch.Tensor) -> torch.Tensor:
        """Do that without autograd."""
        layer, matrix, source = self.stream
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        stream = (layer, matrix, source)
        ops.dropout(x, rate=self.rate, seed=self.seed, stream=stream, out=out)
        return out


class _Masked(torch.autograd.Function):
    """y = mask * x / P(keep); the gradient goes through the same mask."""

    @staticmethod
    def forward(ctx: Context, x: torch.Tensor, dropout: Dropout) -> torch.Tensor:
        ctx.dropout = dropout
        return dropout.masked(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.dropout.masked(grad), None


def add_lora(
    out: torch.Tensor,
    x: torch.Tensor,
    parts: Sequence[LoraPart],
    *,
    first_row: int,
    dropout: Dropout,
) -> torch.Tensor:
    """Give out with scaling * B @ A @ dropout(x) added to the columns of each part.

    As PEFT computes it: A and B keep their own dtype, fp32 or wider; the sum is made in it and
    rounded once.

    Args:
        out: [M, N], the product with consecutive rows of the frozen matrix.
        x: [M, K], its input.
        parts: Adapters of sources whose rows lie within, by row.
        first_row: Which row of the matrix column 0 of `out` belongs to.
        dropout: Of the merged matrix.
    """
    by_start = {part.row_start - first_row: part for part in parts}
    edges = [edge for p in parts for edge in (p.row_start - first_row, p.row_stop - first_row)]
    bounds = sorted({0, *edges, out.shape[1]})
    wide = x.to(parts[0].lora_A.dtype)
    pieces = list(out.split([stop - start for start, stop in itertools.pairwise(bounds)], dim=1))
    for index, start in enumerate(bounds[:-1]):
        part = by_start.get(start)
        if part is not None:
            inner = functional.linear(dropout.of(part.row_start).apply(wide), part.lora_A)
            # A contiguous B^T makes torch compute its gradient as inner^T @ grad. As it is, it would
            # be grad^T @ inner, 10 times slower in fp32 (MKL, [4032, 512] and rank 8).
            delta = (inner * part.scaling) @ part.lora_B.t().contiguous()
            pieces[index] = (pieces[index] + delta).to(out.dtype)
    return torch.cat(pieces, dim=1)


def choose_rows(x: torch.Tensor, rows_R: Int32) -> torch.Tensor:
    """Give x[rows], [R, ...]; rows may repeat, their gradients are added in a fixed order."""
    result: torch.Tensor = _ChooseRows.apply(x, rows_R)
    return result


class _ChooseRows(torch.autograd.Function):
    """y = x[rows]; dx adds the first choice of every row, then the second of those that have one..."""

    @staticmethod
    def forward(ctx: Context, x: torch.Tensor, rows_R: Int32) -> torch.Tensor:
        ctx.rows, ctx.num_rows = rows_R, x.shape[0]
        return x[torch.from_numpy(rows_R).to(x.device)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grad.new_zeros((ctx.num_rows, *grad.shape[1:]))
        add_rows_(total, ctx.rows, grad)
        return total, None


def add_rows_(total: torch.Tensor, rows_R: Int32, x: torch.Tensor) -> None:
    """Add x [R, ...] to total[rows], in place; to a row chosen twice in a fixed order."""
    for choice in _rounds(rows_R):
        places = torch.from_numpy(choice).to(x.device)
        rows = torch.from_numpy(rows_R[choice]).to(x.device)
        # Each row once in a round: order is no matter.
        total.index_add_(0, rows, x[places].to(total.dtype))


def _rounds(rows_R: Int32) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Cut the places of `rows_R` so that in each piece every row comes once."""
    order = np.argsort(rows_R, kind="stable")
    ordered = rows_R[order]
    is_first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    starts = np.flatnonzero(is_first)
    occurrence = np.arange(len(ordered)) - starts[np.cumsum(is_first) - 1]
    return [order[occurrence == k] for k in range(int(occurrence.max(initial=-1)) + 1)]


def linear_nll(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> torch.Tensor:
    """Give the negative log-likelihood of one target a row, float64[R], nats.

    Its gradient is made in the forward pass if it will be wanted; the logits never exist as a
    whole. See `fam_engine.kernels.linear_cross_entropy`.
    """
    result: torch.Tensor = _LinearNll.apply(hidden_RD, head_VD, targets_R)
    return result


class _LinearNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
    ) -> torch.Tensor:
        nll_R, gradient_RD = ops.linear_cross_entropy(
            hidden_RD, head_VD, targets_R, with_gradient=ctx.needs_input_grad[0]
        )
        if gradient_RD is not None:
            ctx.save_for_backward(gradient_RD)
        ctx.dtype = hidden_RD.dtype
        return nll_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_R: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_RD,) = ctx.saved_tensors
        grad_RD = gradient_RD * grad_R.to(gradient_RD.dtype)[:, None]
        return grad_RD.to(ctx.dtype), None, None
