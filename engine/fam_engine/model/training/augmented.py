"""A merged matrix with its adapters inside the matrix product: LoRA as extra columns and rows.

In: activations, a `Linear` whose adapters' matrices are leaves. Out: the product, the gradient of its
input, and the leaves' gradients added to. With S = dropout(X) A^T, dS = s dY B, s the scaling:

    Y  = [X S] [W sB]^T + bias      dB += s dY^T S
    dX = [dY dS] [W; A]             dA += dS^T dropout(X)

So the adapter is summed in the product's own accumulator and rounded once with it, and it costs no
pass over [M, N]; dS and dB take one reading of dY together. Sources of a merged matrix (q, k, v) have
ranks of their own: sB is block-diagonal, with zeros for a source without an adapter. The columns of S
are filled up to a multiple of `RANK_ALIGNMENT` by zeros. One scratch memory holds the matrix of the
moment: [N, K + R] going forward, [N + R, K] going back, so that each is contiguous where it is
multiplied; of NF4 one launch writes it. A and B are brought to the compute dtype once a micro-batch
(`take_leaves`).

With dropout every source has a mask of its own (`functions.Dropout`), so A cannot ride in dX: then
dX = dY W + sum over the sources of dropout(dS A), the mask being its own transpose.

Products with two outer sides of rank and width (dA, dB) are summed in fp32 or wider, in a fixed order.
Rejected: addmm_ of s S B^T after the product, the usual way: another pass over [M, N] and another
rounding.

Letters: M rows, N output features, K input features, R ranks of all sources, filling included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch

from fam_engine.data.packing import on_grid
from fam_engine.model import ops, products
from fam_engine.model.training.functions import Dropout
from fam_engine.model.weights import Linear, LoraDelta, LoraPart

# Values: 32 bytes of bf16, so that rows of every operand keep the alignment tensor cores want.
RANK_ALIGNMENT: Final = 16


@dataclass(frozen=True)
class Source:
    """The adapter of one source matrix.

    Attributes:
        part: Its A, B and scaling; `part.row_start` is its place in the whole merged matrix.
        rows: Its columns in Y.
        ranks: Its columns in S.
        lora_B: B in the compute dtype: B itself, or memory for a copy.
    """

    part: LoraPart
    rows: slice
    ranks: slice
    lora_B: torch.Tensor


class AugmentedLinear:
    """One matrix with its adapters, or consecutive sources of one.

    Args:
        linear: The whole merged matrix.
        features: Which output features: whole sources.
        dtype: The compute dtype.
    """

    def __init__(
        self, linear: Linear, features: slice = slice(None), *, dtype: torch.dtype
    ) -> None:
        first, stop, _ = features.indices(linear.out_features)
        self._linear = _rows_of(linear, first, stop)
        self.out_features = stop - first
        self.in_features = linear.in_features
        self._sources = tuple(_sources(linear, first, stop, dtype))
        self._num_ranks = self._sources[-1].ranks.stop if self._sources else 0
        self.rank = on_grid(self._num_ranks, RANK_ALIGNMENT)
        # A of all sources, with zeros below.
        self._stacked_A = torch.zeros(
            (self.rank, self.in_features), dtype=dtype, device=next(linear.tensors()).device
        )

    @property
    def scratch_values(self) -> int:
        """Return how many values the scratch memory must hold for it."""
        n, k, r = self.out_features, self.in_features, self.rank
        return max(n * (k + r), (n + r) * k)

    def copies(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield where A and B are wanted in the compute dtype, and the leaves; see `take_leaves`."""
        for source in self._sources:
            yield self._stacked_A[source.ranks], source.part.lora_A
            if source.lora_B is not source.part.lora_B:
                yield source.lora_B, source.part.lora_B

    def new_input(self, num_rows: int, like: torch.Tensor) -> torch.Tensor:
        """Give memory for [X S], [M, K + R]."""
        return like.new_empty((num_rows, self.in_features + self.rank))

    def new_output(self, num_rows: int, like: torch.Tensor) -> torch.Tensor:
        """Give memory for [dY dS], or for Y with room for what becomes dS; [M, N + R]."""
        return like.new_empty((num_rows, self.out_features + self.rank))

    def inner(self, xs: torch.Tensor) -> torch.Tensor:
        """Give S, [M, R], of [X S]."""
        return xs[:, self.in_features :]

    def write_inner(self, xs: torch.Tensor, dropout: Dropout) -> None:
        """Write S beside X.

        Args:
            xs: [M, K + R], X in its first columns.
            dropout: Of the merged matrix.
        """
        inner = self.inner(xs)
        for ranks, kept in self._kept(xs, dropout):
            torch.mm(kept, self._stacked_A[ranks].t(), out=inner[:, ranks])
        self._fill_up(inner)

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
        bias = self._linear.bias
        start = bias if residual is None else residual
        if out is None:
            out = xs.new_empty((xs.shape[0], self.out_features))
        if start is None:
            return torch.mm(xs, matrix_t, out=out)
        torch.addmm(start, xs, matrix_t, out=out)
        return out if residual is None or bias is None else out.add_(bias)

    def write_inner_gradient(self, dys: torch.Tensor, inner: torch.Tensor) -> None:
        """Write dS beside dY, and add to the gradients of B.

        Args:
            dys: [M, N + R], dY in its first columns.
            inner: S, [M, R].
        """
        dy, inner_gradient = dys.tensor_split([self.out_features], dim=1)
        for source in self._sources:
            ops.lora_backward(
                dy[:, source.rows],
                inner[:, source.ranks],
                source.lora_B,
                scaling=source.part.scaling,
                grad_inner_TR=inner_gradient[:, source.ranks],
                grad_B_NR=gradient(source.part.lora_B),
            )
        self._fill_up(inner_gradient)

    def add_A_gradients(self, xs: torch.Tensor, dys: torch.Tensor, dropout: Dropout) -> None:
        """Add to the gradients of A, source after source, from [X S] and [dY dS]."""
        inner_gradient = dys[:, self.out_features :]
        for ranks, kept in self._kept(xs, dropout):
            sources = [s for s in self._sources if ranks.start <= s.ranks.start < ranks.stop]
            wide = sources[0].part.lora_A.dtype
            total = kept.new_empty((ranks.stop - ranks.start, self.in_features), dtype=wide)
            ops.mm_fp32(inner_gradient[:, ranks].t(), kept, out=total)
            parts = total.split([s.ranks.stop - s.ranks.start for s in sources])
            for source, part in zip(sources, parts, strict=True):
                gradient(source.part.lora_A).add_(part)

    def input_gradient(
        self,
        dys: torch.Tensor,
        scratch: torch.Tensor,
        dropout: Dropout,
        *,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Give dX, [M, K], from [dY dS]; written to `out` if given."""
        matrix = self._backward_matrix(scratch)
        if out is None:
            out = dys.new_empty((dys.shape[0], self.in_features))
        if not dropout.rate:
            return torch.mm(dys, matrix, out=out)
        torch.mm(dys[:, : self.out_features], matrix[: self.out_features], out=out)
        inner = dys[:, self.out_features :]
        for source in self._sources:
            passed = inner[:, source.ranks] @ self._stacked_A[source.ranks]
            out.add_(dropout.of(source.part.row_start).masked(passed))
        return out

    def _fill_up(self, inner: torch.Tensor) -> None:
        """Write the zeros that fill up S or dS, if there are any."""
        if self._num_ranks < self.rank:
            inner[:, self._num_ranks :].zero_()

    def _kept(self, xs: torch.Tensor, dropout: Dropout) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield what goes into A of which ranks: X for all at once, or what each source's mask leaves of it."""
        x = xs[:, : self.in_features]
        if not dropout.rate:
            if self._sources:
                yield slice(0, self._num_ranks), x
            return
        for source in self._sources:
            yield source.ranks, dropout.of(source.part.row_start).masked(x)

    def _forward_matrix(self, scratch: torch.Tensor) -> torch.Tensor:
        """Give [W sB], [N, K + R], valid until the scratch memory is used again."""
        n, k, r = self.out_features, self.in_features, self.rank
        matrix = scratch[: n * (k + r)].view(n, k + r)
        products.write_matrix(self._linear, matrix, with_B=True)
        return matrix

    def _backward_matrix(self, scratch: torch.Tensor) -> torch.Tensor:
        """Give [W; A], [N + R, K], valid until the scratch memory is used again."""
        n, k, r = self.out_features, self.in_features, self.rank
        matrix = scratch[: (n + r) * k].view(n + r, k)
        products.write_matrix(self._linear, matrix, below=self._stacked_A)
        return matrix


def take_leaves(copies: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Bring A and B of all matrices to the compute dtype, in few launches: `copies` of each of them."""
    wanted, leaves = zip(*copies, strict=True)
    torch._foreach_copy_(wanted, leaves)


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """Give a leaf's gradient to add to; zeros where there is none yet."""
    assert leaf.is_leaf
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf)
    return leaf.grad


def _rows_of(linear: Linear, first: int, stop: int) -> Linear:
    """Give some output features of a matrix with their adapter; whole sources."""
    bias = None if linear.bias is None else linear.bias[first:stop]
    parts = tuple(
        replace(part, row_start=part.row_start - first, row_stop=part.row_stop - first)
        for part in (linear.lora.parts if linear.lora else ())
        if first <= part.row_start < stop
    )
    lora = LoraDelta(parts=parts)
    if isinstance(linear.weight, torch.Tensor):
        return Linear(weight=linear.weight[first:stop], bias=bias, lora=lora)
    row, chosen = 0, []
    for weight in linear.weight:
        if first <= row < stop:
            chosen.append(weight)
        row += weight.shape[0]
    rows = Linear(weight=tuple(chosen), bias=bias, lora=lora)
    assert rows.out_features == stop - first, "features must be whole sources"
    return rows


def _sources(linear: Linear, first: int, stop: int, dtype: torch.dtype) -> Iterator[Source]:
    rank = 0
    for part in linear.lora.parts if linear.lora else ():
        if first <= part.row_start < stop:
            assert part.row_stop <= stop, "features must be whole sources"
            ranks = slice(rank, rank + part.lora_A.shape[0])
            rows = slice(part.row_start - first, part.row_stop - first)
            is_ready = part.lora_B.dtype == dtype
            lora_B = part.lora_B if is_ready else torch.empty_like(part.lora_B, dtype=dtype)
            yield Source(part=part, rows=rows, ranks=ranks, lora_B=lora_B)
            rank = ranks.stop
