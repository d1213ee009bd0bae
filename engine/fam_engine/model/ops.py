"""The operations the decoder is made of: the one module that imports `fam_engine.kernels`.

In: tensors and `Linear` weights of any precision. Out: tensors in the compute dtype. The decoder
above is the same code for every device and precision; which kernel serves them is decided here.

Bits: every matrix product sees a number of rows that is a multiple of 64. Measured with torch 2.15
(oneDNN for bf16, MKL for fp32; AVX-512): for M = 64, 128, ... 4096, over 20 shapes [N, K] from
40 x 40 to 9728 x 896, 1 to 3 threads, with bias, without, and added to a residual, each row has the
same bits whatever M, its place and its neighbours. Off that grid it has not: fp32 differs at
M = 1, 2, 3 (2 threads: also 5, 7), bf16 at M = 1 with K >= 2048. Nothing is promised for fp64, which
serves as a reference only: bits of its head depend on places even on the grid.

Letters: M rows, N output features, K input features.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from fam_engine.kernels import linear_logprob as linear_logprob_torch
from fam_engine.kernels import linear_logprob_avx512
from fam_engine.kernels.attention import attention, visibility_mask
from fam_engine.kernels.linear_cross_entropy import linear_cross_entropy
from fam_engine.kernels.linear_logprob import LinearLogprobs
from fam_engine.kernels.nf4_dequantize import nf4_dequantize
from fam_engine.kernels.rmsnorm import rmsnorm
from fam_engine.kernels.rope import rope_
from fam_engine.kernels.swiglu import swiglu
from fam_engine.model.weights import Linear, LoraPart, Weights

__all__ = [
    "LinearLogprobs",
    "Scratch",
    "attention",
    "linear",
    "linear_add_",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_swiglu",
    "rmsnorm",
    "rope_",
    "visibility_mask",
]

# Rows of a gate-and-up product before the activation: [512, 2F] is still in the L3 cache then.
_MLP_ROWS = 512


class Scratch:
    """Memory in which one matrix at a time is made ready in the compute dtype.

    Args:
        weights: The model; the largest matrix that needs to be made ready sets the size.
        dtype: The compute dtype.
        device: Where.
    """

    def __init__(self, weights: Weights, *, dtype: torch.dtype, device: torch.device) -> None:
        sizes = [
            linear.out_features * linear.in_features
            for layer in weights.layers
            for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)
            if not _is_ready(linear, dtype)
        ]
        self._values = torch.empty(max(sizes, default=0), dtype=dtype, device=device)

    def dense(self, linear: Linear) -> torch.Tensor:
        """Give W + scaling * B @ A as [N, K] in the compute dtype, valid until the next call."""
        if _is_ready(linear, self._values.dtype):
            assert isinstance(linear.weight, torch.Tensor)
            return linear.weight
        shape = (linear.out_features, linear.in_features)
        out = self._values[: shape[0] * shape[1]].view(shape)
        _write_weight(linear, out)
        for part in linear.lora.parts if linear.lora else ():
            _add_lora_(out[part.row_start : part.row_stop], part)
        return out


def _is_ready(linear: Linear, dtype: torch.dtype) -> bool:
    """Whether the stored matrix can be multiplied as it is."""
    weight = linear.weight
    return isinstance(weight, torch.Tensor) and weight.dtype == dtype and linear.lora is None


def _write_weight(linear: Linear, out: torch.Tensor) -> None:
    if isinstance(linear.weight, torch.Tensor):
        out.copy_(linear.weight)
        return
    for part, rows in zip(
        linear.weight, out.split([part.shape[0] for part in linear.weight]), strict=True
    ):
        nf4_dequantize(
            part.packed,
            part.absmax,
            part.absmax2,
            part.offset,
            part.code2,
            shape=part.shape,
            dtype=out.dtype,
            out=rows,
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
    fused = linear_logprob_avx512.is_supported(hidden_RD, head_VD)
    kernel = linear_logprob_avx512 if fused else linear_logprob_torch
    return kernel.linear_logprob(hidden_RD, head_VD, targets_R)


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
