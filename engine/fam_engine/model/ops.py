"""The operations the decoder is made of: the one module that imports `fam_engine.kernels`.

In: tensors and `Linear` weights of any precision. Out: tensors in the compute dtype. The decoder
above is the same code for every device and precision; which kernel serves them is decided here.

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

from fam_engine.kernels import linear_logprob as linear_logprob_torch
from fam_engine.kernels import linear_logprob_avx512
from fam_engine.kernels.attention import attention, visibility_mask
from fam_engine.kernels.cached_attention import cached_attention
from fam_engine.kernels.linear_cross_entropy import linear_cross_entropy
from fam_engine.kernels.linear_logprob import LinearLogprobs
from fam_engine.kernels.nf4_dequantize import nf4_dequantize
from fam_engine.kernels.rmsnorm import rmsnorm
from fam_engine.kernels.rope import rope_
from fam_engine.kernels.swiglu import swiglu
from fam_engine.model.nf4 import NF4Weight
from fam_engine.model.weights import Linear, LoraPart, Weights

__all__ = [
    "LinearLogprobs",
    "Scratch",
    "attention",
    "cached_attention",
    "has_fused_logprob",
    "head_logits",
    "linear",
    "linear_add_",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_swiglu",
    "made_ready",
    "num_unready",
    "rmsnorm",
    "rope_",
    "swiglu",
    "visibility_mask",
]

# Rows of a gate-and-up product before the activation: [512, 2F] is still in the L3 cache then.
_MLP_ROWS = 512
# Columns of the head brought to fp32 at a time: 4 MB at a width of 1024.
_HEAD_COLUMNS = 1024


class Scratch:
    """Memory in which one matrix at a time is made ready in the compute dtype.

    Args:
        weights: The model; the largest matrix that needs to be made ready sets the size.
        dtype: The compute dtype.
        device: Where.
    """

    def __init__(self, weights: Weights, *, dtype: torch.dtype, device: torch.device) -> None:
        sizes = [linear.out_features * linear.in_features for linear in _unready(weights, dtype)]
        self._values = torch.empty(max(sizes, default=0), dtype=dtype, device=device)

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

    def ready(linear: Linear) -> Linear:
        if _is_ready(linear, dtype):
            return linear
        device = next(linear.tensors()).device
        out = torch.empty((linear.out_features, linear.in_features), dtype=dtype, device=device)
        _write_dense(linear, out)
        return Linear(weight=out, bias=linear.bias)

    layers = (
        replace(
            layer,
            qkv=ready(layer.qkv),
            o=ready(layer.o),
            gate_up=ready(layer.gate_up),
            down=ready(layer.down),
        )
        for layer in weights.layers
    )
    return replace(weights, layers=tuple(layers))


def _unready(weights: Weights, dtype: torch.dtype) -> Iterator[Linear]:
    for layer in weights.layers:
        for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
            if not _is_ready(linear, dtype):
                yield linear


def _is_ready(linear: Linear, dtype: torch.dtype) -> bool:
    """Whether the stored matrix can be multiplied as it is."""
    weight = linear.weight
    return isinstance(weight, torch.Tensor) and weight.dtype == dtype and linear.lora is None


def _write_dense(linear: Linear, out: torch.Tensor) -> None:
    """Write W + scaling * B @ A."""
    _write_weight(linear, out)
    for part in linear.lora.parts if linear.lora else ():
        _add_lora_(out[part.row_start : part.row_stop], part)


def _write_weight(linear: Linear, out: torch.Tensor) -> None:
    if isinstance(linear.weight, torch.Tensor):
        out.copy_(linear.weight)
        return
    for part, rows in zip(
        linear.weight, out.split([part.shape[0] for part in linear.weight]), strict=True
    ):
        dequantize(part, dtype=out.dtype, out=rows)


def dequantize(
    weight: NF4Weight, *, dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Give an NF4 matrix as [N, K] in `dtype`; `out` itself, written, when given."""
    return nf4_dequantize(
        weight.packed,
        weight.absmax,
        weight.absmax2,
        weight.offset,
        weight.code2,
        shape=weight.shape,
        dtype=dtype,
        out=out,
    )


def _add_lora_(rows: torch.Tensor, part: LoraPart) -> None:
    """Add scaling * B @ A; the product accumulates in fp32 or wider and is rounded with the sum."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    scaled_B = (part.lora_B.to(wide) * part.scaling).to(rows.dtype)
    rows.addmm_(scaled_B, part.lora_A.to(rows.dtype))


def linear_logprob(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> LinearLogprobs:
    """Compute log-prob, rank, entropy and margin of a target a row; R is a multiple of 64."""
    if has_fused_logprob(hidden_RD, head_VD):
        return linear_logprob_avx512.linear_logprob(hidden_RD, head_VD, targets_R)
    return linear_logprob_torch.linear_logprob(hidden_RD, head_VD, targets_R)


def has_fused_logprob(hidden_RD: torch.Tensor, head_VD: torch.Tensor) -> bool:
    """Whether `linear_logprob` has a kernel of our own for these tensors, or leaves them to torch."""
    return linear_logprob_avx512.is_supported(hidden_RD, head_VD)


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
    bias = None if weight.bias is None else weight.bias[features]
    return functional.linear(x, scratch.dense(weight)[features], bias)


def linear_add_(residual: torch.Tensor, x: torch.Tensor, weight: Linear, scratch: Scratch) -> None:
    """Add x @ W^T + bias to residual [M, N], in place; x is [M, K], M a multiple of 64.

    Without a bias the sum is made before the product is rounded.
    """
    dense = scratch.dense(weight)
    if weight.bias is None:
        residual.addmm_(x, dense.t())
    else:
        residual.add_(functional.linear(x, dense, weight.bias))


def linear_swiglu(x: torch.Tensor, gate_up: Linear, scratch: Scratch) -> torch.Tensor:
    """Return silu(gate) * up as [M, N / 2], where gate and up are the halves of x @ W^T + bias."""
    dense = scratch.dense(gate_up)
    out = x.new_empty((x.shape[0], gate_up.out_features // 2))
    for rows, out_rows in zip(x.split(_MLP_ROWS), out.split(_MLP_ROWS), strict=True):
        swiglu(functional.linear(rows, dense, gate_up.bias), out=out_rows)
    return out


def head_logits(hidden_RD: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """Return all logits [R, V] in fp32 (fp64 for fp64), for choosing a token; R a multiple of 64."""
    wide = torch.promote_types(hidden_RD.dtype, torch.float32)
    hidden_RD = hidden_RD.to(wide)
    logits_RV = hidden_RD.new_empty((hidden_RD.shape[0], head_VD.shape[0]))
    for head, columns in zip(
        head_VD.split(_HEAD_COLUMNS), logits_RV.split(_HEAD_COLUMNS, dim=1), strict=True
    ):
        torch.mm(hidden_RD, head.to(wide).t(), out=columns)
    return logits_RV
