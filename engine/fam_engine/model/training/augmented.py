"""A merged matrix with its adapters inside the matrix product: LoRA as extra columns and rows.

In: activations, a `Linear` whose adapters' matrices are leaves. Out: the product, the gradient of its
input, and the leaves' gradients added to. With S = dropout(X) A^T, dS = dY (s B), s the scaling:

    Y  = [X S] [W sB]^T + bias      dB += s dY^T S
    dX = [dY dS] [W; A]             dA += dS^T dropout(X)

So the adapter is summed in the product's own accumulator and rounded once with it, and it costs no
pass over [M, N]. Sources of a merged matrix (q, k, v) have ranks of their own: sB is block-diagonal,
with zeros for a source without an adapter. The columns of S are filled up to a multiple of
`RANK_ALIGNMENT` by zeros. One scratch memory holds the matrix of the moment: [N, K + R] going
forward, [N + R, K] going back, so that each is contiguous where it is multiplied.

With dropout every source has a mask of its own (as `functions.Dropout` makes them), so A cannot ride
in dX: then dX = dY W + sum over the sources of dropout(dS A), the mask being its own transpose.

Products with two outer sides of rank and width (dA, dB) are summed in fp32 or wider, in chunks of
rows in order. Rejected: addmm_ of s S B^T after the product, the usual way: another pass over [M, N]
and another rounding.

Letters: M rows, N output features, K input features, R ranks of all sources, filling included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch

from fam_engine.model import ops
from fam_engine.model.training.functions import Dropout
from fam_engine.model.weights import Linear, LoraPart

# Values: 32 bytes of bf16, so that rows of every operand keep the alignment tensor cores want.
RANK_ALIGNMENT: Final = 16
# Rows of which dA and dB are made at a time: [512, N] is what has to be brought to fp32.
_PRODUCT_ROWS: Final = 512


@dataclass(frozen=True)
class Source:
    """The adapter of one source matrix.

    Attributes:
        part: Its A, B and scaling; `part.row_start` is its place in the whole merged matrix.
        rows: Its columns in Y.
        ranks: Its columns in S.
    """

    part: LoraPart
    rows: slice
    ranks: slice

    def scaled_B(self, dtype: torch.dtype) -> torch.Tensor:
        """Give s B, [rows, ranks]; multiplied in B's dtype, rounded once."""
        return (self.part.lora_B * self.part.scaling).to(dtype)


class AugmentedLinear:
    """One matrix with its adapters, or consecutive sources of one.

    Args:
        linear: The whole merged matrix.
        features: Which output features: whole sources.
    """

    def __init__(self, linear: Linear, features: slice = slice(None)) -> None:
        first, stop, _ = features.indices(linear.out_features)
        self._frozen = _rows_of(linear, first, stop)
        self._sources = tuple(_sources(linear, first, stop))
        self.out_features = stop - first
        self.in_features = linear.in_features
        ranks = self._sources[-1].ranks.stop if self._sources else 0
        self.rank = -(-ranks // RANK_ALIGNMENT) * RANK_ALIGNMENT

    @property
    def scratch_values(self) -> int:
        """Return how many values the scratch memory must hold for it."""
        n, k, r = self.out_features, self.in_features, self.rank
        return max(n * (k + r), (n + r) * k)

    def new_input(self, num_rows: int, like: torch.Tensor) -> torch.Tensor:
        """Give memory for [X S], [M, K + R]."""
        return like.new_empty((num_rows, self.in_features + self.rank))

    def new_output(self, num_rows: int, like: torch.Tensor) -> torch.Tensor:
        """Give memory for [dY dS], or for Y with room for what becomes dS; [M, N + R]."""
        return like.new_empty((num_rows, self.out_features + self.rank))

    def write_inner(self, xs: torch.Tensor, dropout: Dropout) -> None:
        """Write S beside X.

        Args:
            xs: [M, K + R], X in its first columns.
            dropout: Of the merged matrix.
        """
        if not self._sources:
            return
        x, inner = xs.tensor_split([self.in_features], dim=1)
        if not dropout.rate:
            torch.mm(x, self._stacked_A(xs).t(), out=inner)
            return
        inner[:, self._sources[-1].ranks.stop :].zero_()
        for source in self._sources:
            lora_A = source.part.lora_A
            kept = dropout.of(source.part.row_start).apply(x.to(lora_A.dtype))
            inner[:, source.ranks] = kept @ lora_A.t()

    def forward(
        self,
        xs: torch.Tensor,
        scratch: torch.Tensor,
        *,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Give residual + [X S] [W sB]^T + bias, [M, N].

        Args:
            xs: [M, K + R].
            scratch: At least `scratch_values` values of the compute dtype.
            residual: [M, N] to add to the product before it is rounded; only without a bias or with
                one rounding more.
            out: Where to write; by default new memory.
        """
        matrix_t = self._forward_matrix(scratch).t()
        bias = self._frozen.bias
        start = bias if residual is None else residual
        if out is None:
            out = xs.new_empty((xs.shape[0], self.out_features))
        if start is None:
            return torch.mm(xs, matrix_t, out=out)
        torch.addmm(start, xs, matrix_t, out=out)
        return out if residual is None or bias is None else out.add_(bias)

    def write_inner_gradient(self, dys: torch.Tensor) -> None:
        """Write dS beside dY; `dys` is [M, N + R], dY in its first columns."""
        if not self._sources:
            return
        dy, inner = dys.tensor_split([self.out_features], dim=1)
        inner[:, self._sources[-1].ranks.stop :].zero_()
        for source in self._sources:
            torch.mm(dy[:, source.rows], source.scaled_B(dys.dtype), out=inner[:, source.ranks])

    def input_gradient(
        self,
        dys: torch.Tensor,
        scratch: torch.Tensor,
        dropout: Dropout,
        *,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Give dX, [M, K], from [dY dS]; written to `out` if given."""
        matrix = self._backward_matrix(scratch, dys)
        if out is None:
            out = dys.new_empty((dys.shape[0], self.in_features))
        if not dropout.rate:
            return torch.mm(dys, matrix, out=out)
        torch.mm(dys[:, : self.out_features], matrix[: self.out_features], out=out)
        inner = dys[:, self.out_features :]
        for source in self._sources:
            lora_A = source.part.lora_A
            passed = inner[:, source.ranks].to(lora_A.dtype) @ lora_A
            out.add_(dropout.of(source.part.row_start).apply(passed))
        return out

    def add_gradients(self, xs: torch.Tensor, dys: torch.Tensor, dropout: Dropout) -> None:
        """Add to the gradients of A and B, source after source, from [X S] and [dY dS]."""
        x, inner = xs.tensor_split([self.in_features], dim=1)
        dy, inner_gradient = dys.tensor_split([self.out_features], dim=1)
        for source in self._sources:
            part = source.part
            wide = part.lora_A.dtype
            kept = x
            if dropout.rate:
                kept = dropout.of(part.row_start).apply(x.to(wide))
            gradient(part.lora_A).add_(_product(inner_gradient[:, source.ranks], kept, wide))
            # As S^T dY and not dY^T S: MKL takes 10 times as long for a product that narrow.
            product = _product(inner[:, source.ranks], dy[:, source.rows], wide)
            gradient(part.lora_B).add_(product.t(), alpha=part.scaling)

    def _forward_matrix(self, scratch: torch.Tensor) -> torch.Tensor:
        """Give [W sB], [N, K + R], valid until the scratch memory is used again."""
        n, k, r = self.out_features, self.in_features, self.rank
        matrix = scratch[: n * (k + r)].view(n, k + r)
        ops.write_matrix(self._frozen, matrix[:, :k])
        matrix[:, k:].zero_()
        for source in self._sources:
            matrix[source.rows, k:][:, source.ranks] = source.scaled_B(matrix.dtype)
        return matrix

    def _backward_matrix(self, scratch: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Give [W; A], [N + R, K], valid until the scratch memory is used again."""
        n, k, r = self.out_features, self.in_features, self.rank
        matrix = scratch[: (n + r) * k].view(n + r, k)
        ops.write_matrix(self._frozen, matrix[:n])
        if self._sources:
            matrix[n:] = self._stacked_A(like)
        return matrix

    def _stacked_A(self, like: torch.Tensor) -> torch.Tensor:
        """Give A of all sources with zeros below, [R, K], in the compute dtype."""
        stacked = like.new_zeros((self.rank, self.in_features))
        for source in self._sources:
            stacked[source.ranks] = source.part.lora_A
        return stacked


def new_scratch(
    linears: Iterable[AugmentedLinear], *, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Give scratch memory for any one of these at a time."""
    size = max(linear.scratch_values for linear in linears)
    return torch.empty(size, dtype=dtype, device=device)


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """Give a leaf's gradient to add to; zeros where there is none yet."""
    assert leaf.is_leaf
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf)
    return leaf.grad


def _product(narrow: torch.Tensor, broad: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """Give narrow^T @ broad in `wide`, from [M, a] and [M, b]."""
    total = broad.new_zeros((narrow.shape[1], broad.shape[1]), dtype=wide)
    for left, right in zip(narrow.split(_PRODUCT_ROWS), broad.split(_PRODUCT_ROWS), strict=True):
        total.addmm_(left.to(wide).t(), right.to(wide))
    return total


def _rows_of(linear: Linear, first: int, stop: int) -> Linear:
    """Give some output features of a matrix, without the adapter; of NF4 whole sources."""
    bias = None if linear.bias is None else linear.bias[first:stop]
    if isinstance(linear.weight, torch.Tensor):
        return Linear(weight=linear.weight[first:stop], bias=bias)
    row, chosen = 0, []
    for weight in linear.weight:
        if first <= row < stop:
            chosen.append(weight)
        row += weight.shape[0]
    rows = Linear(weight=tuple(chosen), bias=bias)
    assert rows.out_features == stop - first, "features must be whole sources"
    return rows


def _sources(linear: Linear, first: int, stop: int) -> Iterable[Source]:
    rank = 0
    for part in linear.lora.parts if linear.lora else ():
        if first <= part.row_start < stop:
            assert part.row_stop <= stop, "features must be whole sources"
            ranks = slice(rank, rank + part.lora_A.shape[0])
            rows = slice(part.row_start - first, part.row_stop - first)
            yield Source(part=part, rows=rows, ranks=ranks)
            rank = ranks.stop
