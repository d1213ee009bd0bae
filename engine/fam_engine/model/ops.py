"""The operations the decoder is made of: the one module that imports `fam_engine.kernels`.

In: tensors, NF4 matrices. Out: tensors in the compute dtype. The decoder
above is the same code for every device and precision; which kernel serves them is decided here: on
a GPU Triton's, elsewhere (and for fp64) torch's, which are the references of the same signature. What
is more than a kernel, the products with matrices of any precision, is in `products`.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from fam_engine.kernels import linear_logprob as linear_logprob_torch
from fam_engine.kernels import linear_logprob_avx512
from fam_engine.kernels.attention import attention, visibility_mask
from fam_engine.kernels.cached_attention import Prompts
from fam_engine.kernels.flat_adamw import step_scalars
from fam_engine.kernels.linear_logprob import LinearLogprobs
from fam_engine.kernels.mm_fp32 import mm_fp32
from fam_engine.kernels.nf4_dequantize import BLOCK_SIZE, LoraFactors, NF4Weight, write_scaled_B
from fam_engine.kernels.nf4_linear import MAX_ROWS
from fam_engine.kernels.qk_norm_rope import HeadNorms
from fam_engine.kernels.rope import rope_
from fam_engine.kernels.sample import uniform
from fam_engine.kernels.varlen_attention import is_supported as has_varlen_attention
from fam_engine.kernels.varlen_attention import varlen_attention, varlen_attention_backward

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BLOCK_SIZE",
    "MAX_ROWS",
    "HeadNorms",
    "LinearLogprobs",
    "LoraFactors",
    "NF4Weight",
    "Prompts",
    "add_rmsnorm",
    "add_rmsnorm_backward",
    "attention",
    "cached_attention",
    "dequantize",
    "dropout",
    "flat_adamw",
    "grad_norm",
    "has_fused_logprob",
    "has_varlen_attention",
    "linear_cross_entropy",
    "linear_logprob",
    "lora_backward",
    "mm_fp32",
    "nf4_linear",
    "nf4_quantize",
    "qk_norm_rope",
    "qk_norm_rope_backward",
    "rmsnorm",
    "rope_",
    "sample",
    "step_scalars",
    "sum_rows",
    "swiglu",
    "swiglu_backward",
    "takes_triton",
    "uniform",
    "varlen_attention",
    "varlen_attention_backward",
    "visibility_mask",
    "write_scaled_B",
]


def takes_triton(x: torch.Tensor) -> bool:
    """Whether Triton's kernels serve a tensor: on a GPU, but not in fp64, which is for reference."""
    return x.is_cuda and x.dtype != torch.float64


def _kernel(name: str, x: torch.Tensor) -> Any:  # noqa: ANN401 - a function of that name's signature
    """Give the kernel that serves a tensor: of a file, or `file.function`."""
    return _find_kernel(name, is_triton=takes_triton(x))


@cache
def _find_kernel(name: str, *, is_triton: bool) -> Any:  # noqa: ANN401
    # Late: Triton is on Linux only, and takes its time.
    file, _, function = name.partition(".")
    module = f"fam_engine.kernels.{file}{'_triton' if is_triton else ''}"
    return getattr(importlib.import_module(module), function or file)


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """Norm each row; see `fam_engine.kernels.rmsnorm`."""
    normed: torch.Tensor = _kernel("rmsnorm", x)(x, weight, eps=eps)
    return normed


def add_rmsnorm(
    residual: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    eps: float,
    out: torch.Tensor,
    rstd: torch.Tensor | None = None,
) -> None:
    """Add to the residual and norm it; see `fam_engine.kernels.add_rmsnorm`."""
    _kernel("add_rmsnorm", residual)(residual, delta, weight, eps=eps, out=out, rstd=rstd)


def add_rmsnorm_backward(
    grad_out: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    *,
    grad_residual: torch.Tensor,
) -> None:
    """Add the norm's gradient; see `fam_engine.kernels.add_rmsnorm`."""
    backward = _kernel("add_rmsnorm.add_rmsnorm_backward", residual)
    backward(grad_out, residual, weight, rstd, grad_residual=grad_residual)


def qk_norm_rope(
    x_TNd: torch.Tensor,
    cos_Td: torch.Tensor,
    sin_Td: torch.Tensor,
    *,
    norms: HeadNorms | None,
    out_TNd: torch.Tensor | None = None,
) -> None:
    """Norm and turn heads, in place without `out_TNd`; see `fam_engine.kernels.qk_norm_rope`."""
    out_TNd = x_TNd if out_TNd is None else out_TNd
    _kernel("qk_norm_rope", x_TNd)(x_TNd, cos_Td, sin_Td, norms=norms, out_TNd=out_TNd)


def qk_norm_rope_backward(
    grad_TNd: torch.Tensor,
    x_TNd: torch.Tensor | None,
    cos_Td: torch.Tensor,
    sin_Td: torch.Tensor,
    *,
    norms: HeadNorms | None,
) -> None:
    """Make the gradient of heads that of what was turned; see `fam_engine.kernels.qk_norm_rope`."""
    backward = _kernel("qk_norm_rope.qk_norm_rope_backward", grad_TNd)
    backward(grad_TNd, x_TNd, cos_Td, sin_Td, norms=norms)


def swiglu(gate_up: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write silu(gate) * up; see `fam_engine.kernels.swiglu`."""
    _kernel("swiglu", out)(gate_up, out=out)


def swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor, *, out: torch.Tensor) -> None:
    """Make gate and up their gradients; see `fam_engine.kernels.swiglu`."""
    _kernel("swiglu.swiglu_backward", grad)(grad, gate_up, out=out)


def dropout(
    x_TK: torch.Tensor,
    *,
    rate: float,
    seed: torch.Tensor,
    stream: tuple[int, int, int],
    out: torch.Tensor,
) -> None:
    """Leave values out; see `fam_engine.kernels.dropout`."""
    _kernel("dropout", x_TK)(x_TK, rate=rate, seed=seed, stream=stream, out=out)


def lora_backward(
    grad_TN: torch.Tensor,
    inner_TR: torch.Tensor,
    lora_B_NR: torch.Tensor,
    *,
    scaling: float,
    grad_inner_TR: torch.Tensor,
    grad_B_NR: torch.Tensor,
) -> None:
    """Give the gradient of S and add to that of B; see `fam_engine.kernels.lora_backward`."""
    _kernel("lora_backward", grad_TN)(
        grad_TN,
        inner_TR,
        lora_B_NR,
        scaling=scaling,
        grad_inner_TR=grad_inner_TR,
        grad_B_NR=grad_B_NR,
    )


def sum_rows(
    x_SW: torch.Tensor, places_S: torch.Tensor, starts_T: torch.Tensor, *, out_TW: torch.Tensor
) -> None:
    """Add up rows taken from the same place; see `fam_engine.kernels.sum_rows`."""
    _kernel("sum_rows", x_SW)(x_SW, places_S, starts_T, out_TW=out_TW)


def grad_norm(grads_P: torch.Tensor, *, max_norm: float) -> torch.Tensor:
    """Give the norm and the clipping factor; see `fam_engine.kernels.grad_norm`."""
    found: torch.Tensor = _kernel("grad_norm", grads_P)(grads_P, max_norm=max_norm)
    return found


def flat_adamw(
    params_P: torch.Tensor,
    grads_P: torch.Tensor,
    exp_avg_P: torch.Tensor,
    exp_avg_sq_P: torch.Tensor,
    *,
    scalars: torch.Tensor,
    clip: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Move parameters; see `fam_engine.kernels.flat_adamw`."""
    kernel = _kernel("flat_adamw", params_P)
    buffers = (params_P, grads_P, exp_avg_P, exp_avg_sq_P)
    kernel(*buffers, scalars=scalars, clip=clip, betas=betas, eps=eps)


def cached_attention(
    query_SHd: torch.Tensor,
    kv_SCGd: torch.Tensor,
    new_SGd: torch.Tensor,
    lengths_S: torch.Tensor,
    *,
    window: int | None,
    out_SHd: torch.Tensor,
    prompts: Prompts | None,
) -> None:
    """Keep what is new and attend to all that is kept; see `fam_engine.kernels.cached_attention`."""
    kernel = _kernel("cached_attention", query_SHd)
    kernel(query_SHd, kv_SCGd, new_SGd, lengths_S, window=window, out_SHd=out_SHd, prompts=prompts)


def linear_cross_entropy(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor, *, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Give losses and their gradient; see `fam_engine.kernels.linear_cross_entropy`."""
    is_triton = takes_triton(hidden_RD) and hidden_RD.dtype == head_VD.dtype
    kernel = _find_kernel("linear_cross_entropy", is_triton=is_triton)
    losses: tuple[torch.Tensor, torch.Tensor | None] = kernel(
        hidden_RD, head_VD, targets_R, with_gradient=with_gradient
    )
    return losses


def sample(
    logits_RV: torch.Tensor,
    seed_R: torch.Tensor,
    position_R: torch.Tensor,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token a row; see `fam_engine.kernels.sample`."""
    chosen: tuple[torch.Tensor, torch.Tensor] = _kernel("sample", logits_RV)(
        logits_RV, seed_R, position_R, temperature=temperature, top_p=top_p, top_k=top_k
    )
    return chosen


def dequantize(
    weights: Sequence[NF4Weight],
    *,
    out: torch.Tensor,
    loras: Sequence[LoraFactors | None] = (),
    beside: Sequence[LoraFactors | None] = (),
    below: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write NF4 matrices one below the other and give `out`; see `fam_engine.kernels.nf4_dequantize`."""
    # Triton's kernel takes whole blocks a row; torch's takes any, with the same bits.
    is_triton = takes_triton(out) and weights[0].shape[1] % BLOCK_SIZE == 0
    dense: torch.Tensor = _find_kernel("nf4_dequantize", is_triton=is_triton)(
        weights, out=out, loras=loras, beside=beside, below=below
    )
    return dense


def nf4_linear(
    x: torch.Tensor,
    weights: Sequence[NF4Weight],
    *,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    loras: Sequence[LoraFactors | None],
    adds: bool,
) -> None:
    """Multiply few rows by NF4 matrices one below the other; see `fam_engine.kernels.nf4_linear`."""
    _kernel("nf4_linear", x)(x, weights, out=out, bias=bias, loras=loras, adds=adds)


def nf4_quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a matrix but for its absmaxes; see `fam_engine.kernels.nf4_quantize`."""
    # As for `dequantize`: the same bits.
    is_triton = takes_triton(weight) and weight.shape[1] % BLOCK_SIZE == 0
    quantized: tuple[torch.Tensor, torch.Tensor] = _find_kernel(
        "nf4_quantize", is_triton=is_triton
    )(weight)
    return quantized


def linear_logprob(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, targets_R: torch.Tensor
) -> LinearLogprobs:
    """Compute log-prob, rank, entropy and margin of a target a row; R is a multiple of 64."""
    if linear_logprob_avx512.is_supported(hidden_RD, head_VD):
        return linear_logprob_avx512.linear_logprob(hidden_RD, head_VD, targets_R)
    if has_fused_logprob(hidden_RD, head_VD):
        from fam_engine.kernels import linear_logprob_gpu  # imports Triton

        return linear_logprob_gpu.linear_logprob(hidden_RD, head_VD, targets_R)
    return linear_logprob_torch.linear_logprob(hidden_RD, head_VD, targets_R)


def has_fused_logprob(hidden_RD: torch.Tensor, head_VD: torch.Tensor) -> bool:
    """Whether `linear_logprob` has a kernel of our own for these tensors, or leaves them to torch."""
    on_gpu = takes_triton(hidden_RD) and hidden_RD.dtype == head_VD.dtype
    return on_gpu or linear_logprob_avx512.is_supported(hidden_RD, head_VD)
