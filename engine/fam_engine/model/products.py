"""Matrix products with weights of any precision, adapters included: each matrix made ready, then multiplied.

In: rows, a `Linear`, scratch memory. Out: the products in the compute dtype. A matrix that is stored as it is
multiplied is taken as it is; another is written into the scratch memory first, but for few rows on a GPU, which a
kernel multiplies by NF4 as it is.

Bits: every matrix product sees a number of rows that is a multiple of 64, and Intel's processors are
told to keep the order of sums (`cpu_products`). Measured with torch 2.15 (oneDNN for bf16, MKL
for fp32; AVX-512): for M = 64, 128, ... 4096, over 20 shapes [N, K] from
40 x 40 to 9728 x 896, 1 to 3 threads, with bias, without, and added to a residual, each row has the
same bits whatever M, its place and its neighbours. Off that grid it has not: fp32 differs at
M = 1, 2, 3 (2 threads: also 5, 7), bf16 at M = 1 with K >= 2048. Nothing is promised for fp64, which
serves as a reference only: bits of its head depend on places even on the grid.

Letters: M rows, N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn import functional

from fam_engine.model import ops
from fam_engine.model.weights import Linear, LoraPart, Weights

# A GPU's library may else add the parts of a sum over K up in bf16.
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

# Rows of every product where bits must not depend on how many there are, see `Scratch`. Tiles of 128 x 256 then make
# 256 and more programs of the matrices of Llama-3.1-8B, of which an H100 runs 132 at a time.
FIXED_ROWS = 2048
# Columns of the head brought to fp32 at a time: 4 MB at a width of 1024.
_HEAD_COLUMNS = 1024


def mlp_rows(device_type: str) -> int:
    """Give the rows of a gate-and-up product before the activation.

    On a CPU [512, 2F] is still in the L3 cache then. A GPU would read the matrix from memory for each 512 rows, which
    takes a third of their product's time (4.3 TB/s, 790 TFLOP/s).
    """
    return 512 if device_type == "cpu" else 2048


class Scratch:
    """Memory in which one matrix at a time is made ready in the compute dtype.

    Args:
        weights: The model; the largest matrix that needs to be made ready sets the size.
        dtype: The compute dtype.
        device: Where.
        fixed_rows: Multiply so many rows at a time, no fewer and no more, whatever is asked for: then one library
            function with one order of sums serves all rows. None: all rows at once.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        fixed_rows: int | None = None,
    ) -> None:
        self.fixed_rows = fixed_rows
        sizes = [linear.out_features * linear.in_features for linear in _unready(weights, dtype)]
        self._values = torch.empty(max(sizes, default=0), dtype=dtype, device=device)

    def reserve(self, num_values: int) -> torch.Tensor:
        """Give the memory itself, made larger if it holds fewer values; for whoever makes matrices ready otherwise."""
        if self._values.numel() < num_values:
            self._values = self._values.new_empty(0)  # never both at once
            self._values = self._values.new_empty(num_values)
        return self._values

    def dense(self, linear: Linear) -> torch.Tensor:
        """Give W + scaling * B @ A as [N, K] in the compute dtype, valid until the next call."""
        if _is_ready(linear, self._values.dtype):
            assert isinstance(linear.weight, torch.Tensor)
            return linear.weight
        shape = (linear.out_features, linear.in_features)
        out = self._values[: shape[0] * shape[1]].view(shape)
        _write_dense(linear, out)
        return out


def num_unready(weights: Weights, *, dtype: torch.dtype) -> int:
    """Count the values of the matrices that need to be made ready."""
    return sum(linear.out_features * linear.in_features for linear in _unready(weights, dtype))


def made_ready(weights: Weights, *, dtype: torch.dtype) -> Weights:
    """Give the same model with each matrix as `Scratch.dense` gives it, kept.

    Args:
        weights: The model; what is ready already is shared with it.
        dtype: The compute dtype.
    """

    def ready(_: str, linear: Linear) -> Linear:
        if _is_ready(linear, dtype):
            return linear
        device = next(linear.tensors()).device
        out = torch.empty((linear.out_features, linear.in_features), dtype=dtype, device=device)
        _write_dense(linear, out)
        return Linear(weight=out, bias=linear.bias)

    return replace(weights, layers=tuple(layer.with_linears(ready) for layer in weights.layers))


def _unready(weights: Weights, dtype: torch.dtype) -> Iterator[Linear]:
    return (linear for linear in weights.linears() if not _is_ready(linear, dtype))


def _is_ready(linear: Linear, dtype: torch.dtype) -> bool:
    """Whether the stored matrix can be multiplied as it is."""
    weight = linear.weight
    return isinstance(weight, torch.Tensor) and weight.dtype == dtype and linear.lora is None


def _write_dense(linear: Linear, out: torch.Tensor) -> None:
    """Write W + scaling * B @ A."""
    has_blocks = isinstance(linear.weight, tuple) and linear.in_features % ops.BLOCK_SIZE == 0
    if ops.takes_triton(out) and has_blocks:
        # One launch writes both, and the sum is made before anything is rounded.
        weights, loras = _sources(linear)
        ops.dequantize(weights, out=out, loras=loras)
        return
    write_matrix(linear, out)
    for lora in linear.lora.parts if linear.lora else ():
        _add_lora_(out[lora.row_start : lora.row_stop], lora)


def write_matrix(
    linear: Linear,
    out: torch.Tensor,
    *,
    with_B: bool = False,
    below: torch.Tensor | None = None,
) -> None:
    """Write W without its adapter, or with what a training step multiplies at once; of NF4 in one launch.

    Args:
        linear: W, [N, K], and its adapter.
        out: [N, K] in the compute dtype, whose rows may be longer than they are wide: where to write. With B
            [N, K + C], C at least all ranks and for Triton a multiple of 16; with `below` [N + R, K].
        with_B: Write scaling * B of each source into columns of its own beside W, zeros into the rest of them.
        below: [R, K] in the compute dtype, contiguous: to copy below W.
    """
    if isinstance(linear.weight, tuple):
        weights, loras = _sources(linear)
        ops.dequantize(weights, out=out, beside=loras if with_B else (), below=below)
        return
    num_rows, num_columns = linear.weight.shape
    out[:num_rows, :num_columns] = linear.weight
    if with_B:
        parts = linear.lora.parts if linear.lora else ()
        blocks = [(part.row_start, part.lora_B, part.scaling) for part in parts]
        ops.write_scaled_B(out[:, num_columns:], blocks)
    if below is not None:
        out[num_rows:] = below


def _sources(
    linear: Linear,
) -> tuple[tuple[ops.NF4Weight, ...], tuple[ops.LoraFactors | None, ...]]:
    """Give the NF4 matrices of a merged one and the adapter of each."""
    assert isinstance(linear.weight, tuple)
    adapters = {part.row_start: part for part in (linear.lora.parts if linear.lora else ())}
    start, loras = 0, []
    for weight in linear.weight:
        lora = adapters.get(start)
        factors = None
        if lora is not None:
            factors = ops.LoraFactors(lora_A=lora.lora_A, lora_B=lora.lora_B, scaling=lora.scaling)
        loras.append(factors)
        start += weight.shape[0]
    return linear.weight, tuple(loras)


def _add_lora_(rows: torch.Tensor, part: LoraPart) -> None:
    """Add scaling * B @ A; the product accumulates in fp32 or wider and is rounded with the sum."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    scaled_B = (part.lora_B.to(wide) * part.scaling).to(rows.dtype)
    rows.addmm_(scaled_B, part.lora_A.to(rows.dtype))


def linear(
    x: torch.Tensor, weight: Linear, scratch: Scratch, *, features: slice = slice(None)
) -> torch.Tensor:
    """Return x @ W^T + bias as [M, N]; x is [M, K], M a multiple of 64.

    Args:
        x: The rows.
        weight: The matrix, of any precision.
        scratch: Where it is made ready.
        features: Which output features to compute; all by default.
    """
    if features == slice(None) and _are_few_rows(x, weight, scratch):
        return _few_rows_linear(x, weight)
    dense = scratch.dense(weight)[features]
    bias = None if weight.bias is None else weight.bias[features]
    if scratch.fixed_rows is None:
        return functional.linear(x, dense, bias)
    out = x.new_empty((x.shape[0], dense.shape[0]))
    for rows in _row_tiles(x.shape[0], scratch.fixed_rows):
        part = _filled(x[rows], scratch.fixed_rows)
        out[rows] = functional.linear(part, dense, bias)[: rows.stop - rows.start]
    return out


def linear_add_(residual: torch.Tensor, x: torch.Tensor, weight: Linear, scratch: Scratch) -> None:
    """Add x @ W^T + bias to residual [M, N], in place; x is [M, K], M a multiple of 64.

    Without a bias the sum is made before the product is rounded.
    """
    if _are_few_rows(x, weight, scratch):
        _few_rows_linear(x, weight, residual)
        return
    dense = scratch.dense(weight)
    num_rows = scratch.fixed_rows or max(x.shape[0], 1)
    for rows in _row_tiles(x.shape[0], num_rows):
        part, total = _filled(x[rows], num_rows), _filled(residual[rows], num_rows)
        if weight.bias is None:
            total.addmm_(part, dense.t())
        else:
            total.add_(functional.linear(part, dense, weight.bias))
        if rows.stop - rows.start < num_rows:
            residual[rows] = total[: rows.stop - rows.start]


def linear_swiglu(x: torch.Tensor, gate_up: Linear, scratch: Scratch) -> torch.Tensor:
    """Return silu(gate) * up as [M, N / 2], where gate and up are the halves of x @ W^T + bias."""
    out = x.new_empty((x.shape[0], gate_up.out_features // 2))
    if _are_few_rows(x, gate_up, scratch):
        ops.swiglu(_few_rows_linear(x, gate_up), out=out)
        return out
    dense = scratch.dense(gate_up)
    for rows in _row_tiles(x.shape[0], scratch.fixed_rows or mlp_rows(x.device.type)):
        part = _filled(x[rows], scratch.fixed_rows or 0)
        product = functional.linear(part, dense, gate_up.bias)
        ops.swiglu(product[: rows.stop - rows.start], out=out[rows])
    return out


def _row_tiles(num_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _filled(x: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Give x itself if it has so many rows, else a copy with zeros behind."""
    missing = num_rows - x.shape[0]
    return x if missing <= 0 else functional.pad(x, (0, 0, 0, missing))


def _are_few_rows(x: torch.Tensor, weight: Linear, scratch: Scratch) -> bool:
    """Whether a product reads an NF4 matrix only once if it is not made ready in memory before."""
    fits = x.shape[0] <= ops.MAX_ROWS and x.shape[1] % ops.BLOCK_SIZE == 0
    is_free = scratch.fixed_rows is None
    return is_free and ops.takes_triton(x) and isinstance(weight.weight, tuple) and fits


def takes_few_rows(weights: Weights, like: torch.Tensor) -> bool:
    """Whether layers take any number of rows up to 64, each with the same bits whatever the number."""
    return all(
        isinstance(linear.weight, tuple) and linear.in_features % ops.BLOCK_SIZE == 0
        for linear in weights.linears()
    ) and ops.takes_triton(like)


def _few_rows_linear(
    x: torch.Tensor, weight: Linear, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """Return x @ (W + scaling * B @ A)^T + bias without W in memory, added to the residual in place if given."""
    out = x.new_empty((x.shape[0], weight.out_features)) if residual is None else residual
    parts, loras = _sources(weight)
    ops.nf4_linear(x, parts, out=out, bias=weight.bias, loras=loras, adds=residual is not None)
    return out


def head_logits(hidden_RD: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """Return all logits [R, V] in fp32 (fp64 for fp64), for choosing a token; R a multiple of 64."""
    wide = torch.promote_types(hidden_RD.dtype, torch.float32)
    shape = (hidden_RD.shape[0], head_VD.shape[0])
    logits_RV = torch.empty(shape, dtype=wide, device=hidden_RD.device)
    if ops.takes_triton(hidden_RD) and hidden_RD.dtype == head_VD.dtype:
        # The head is read once, as it is stored.
        ops.mm_fp32(hidden_RD, head_VD.t(), out=logits_RV)
        return logits_RV
    hidden_RD = hidden_RD.to(wide)
    for head, columns in zip(
        head_VD.split(_HEAD_COLUMNS), logits_RV.split(_HEAD_COLUMNS, dim=1), strict=True
    ):
        torch.mm(hidden_RD, head.to(wide).t(), out=columns)
    return logits_RV
