"""The operations the decoder is made of: the one module that imports `fam_engine.kernels`.

In: tensors and `Linear` weights of any precision. Out: tensors in the compute dtype. The decoder
above is the same code for every device and precision; which kernel serves them is decided here: on
a GPU Triton's, elsewhere (and for fp64) torch's, which are the references of the same signature.

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

import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from fam_engine.kernels import linear_logprob as linear_logprob_torch
from fam_engine.kernels import linear_logprob_avx512
from fam_engine.kernels.attention import attention, visibility_mask
from fam_engine.kernels.cached_attention import Prompts
from fam_engine.kernels.flat_adamw import step_scalars
from fam_engine.kernels.linear_logprob import LinearLogprobs
from fam_engine.kernels.mm_fp32 import mm_fp32
from fam_engine.kernels.nf4_dequantize import BLOCK_SIZE, LoraFactors
from fam_engine.kernels.nf4_linear import MAX_ROWS
from fam_engine.kernels.qk_norm_rope import HeadNorms
from fam_engine.kernels.rope import rope_
from fam_engine.kernels.varlen_attention import is_supported as has_varlen_attention
from fam_engine.kernels.varlen_attention import varlen_attention, varlen_attention_backward
from fam_engine.model.weights import Linear, LoraPart, Weights

if TYPE_CHECKING:
    from fam_engine.model.nf4 import NF4Weight

__all__ = [
    "HeadNorms",
    "LinearLogprobs",
    "Prompts",
    "Scratch",
    "add_rmsnorm",
    "add_rmsnorm_backward",
    "attention",
    "cached_attention",
    "dropout",
    "flat_adamw",
    "grad_norm",
    "has_fused_logprob",
    "has_varlen_attention",
    "head_logits",
    "linear",
    "linear_add_",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_swiglu",
    "lora_backward",
    "made_ready",
    "mlp_rows",
    "mm_fp32",
    "nf4_quantize",
    "num_unready",
    "qk_norm_rope",
    "qk_norm_rope_backward",
    "rmsnorm",
    "rope_",
    "sample",
    "step_scalars",
    "sum_rows",
    "swiglu",
    "swiglu_backward",
    "takes_few_rows",
    "takes_triton",
    "varlen_attention",
    "varlen_attention_backward",
    "visibility_mask",
    "write_matrix",
]

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
    lengths_S: torch.Tensor,
    *,
    window: int | None,
    out_SHd: torch.Tensor,
    prompts: Prompts | None,
) -> None:
    """Attend to what is kept; see `fam_engine.kernels.cached_attention`."""
    kernel = _kernel("cached_attention", query_SHd)
    kernel(query_SHd, kv_SCGd, lengths_S, window=window, out_SHd=out_SHd, prompts=prompts)


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
    uniform_R: torch.Tensor,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token a row; see `fam_engine.kernels.sample`."""
    chosen: tuple[torch.Tensor, torch.Tensor] = _kernel("sample", logits_RV)(
        logits_RV, uniform_R, temperature=temperature, top_p=top_p, top_k=top_k
    )
    return chosen


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
    has_blocks = isinstance(linear.weight, tuple) and linear.in_features % BLOCK_SIZE == 0
    if takes_triton(out) and has_blocks:
        # One launch writes both, and the sum is made before anything is rounded.
        for part, rows, factors in _sources(linear):
            dequantize(part, dtype=out.dtype, out=out[rows], lora=factors)
        return
    write_matrix(linear, out)
    for lora in linear.lora.parts if linear.lora else ():
        _add_lora_(out[lora.row_start : lora.row_stop], lora)


def write_matrix(linear: Linear, out: torch.Tensor) -> None:
    """Write W, without its adapter, to `out` [N, K], whose rows may be longer than they are wide."""
    if isinstance(linear.weight, torch.Tensor):
        out.copy_(linear.weight)
        return
    for part, rows, _ in _sources(linear):
        dequantize(part, dtype=out.dtype, out=out[rows])


def _sources(linear: Linear) -> Iterator[tuple[NF4Weight, slice, LoraFactors | None]]:
    """Yield the NF4 matrices of a merged one, the rows they fill, and their adapters."""
    assert isinstance(linear.weight, tuple)
    adapters = {part.row_start: part for part in (linear.lora.parts if linear.lora else ())}
    start = 0
    for part in linear.weight:
        lora = adapters.get(start)
        factors = None
        if lora is not None:
            factors = LoraFactors(lora_A=lora.lora_A, lora_B=lora.lora_B, scaling=lora.scaling)
        yield part, slice(start, start + part.shape[0]), factors
        start += part.shape[0]


def dequantize(
    weight: NF4Weight,
    *,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
    lora: LoraFactors | None = None,
) -> torch.Tensor:
    """Give an NF4 matrix, with its adapter or without, as [N, K] in `dtype`; `out` itself when given."""
    out = (
        torch.empty(weight.shape, dtype=dtype, device=weight.packed.device) if out is None else out
    )
    # Triton's kernel takes whole blocks a row; torch's takes any, with the same bits.
    is_triton = takes_triton(out) and weight.shape[1] % BLOCK_SIZE == 0
    dense: torch.Tensor = _find_kernel("nf4_dequantize", is_triton=is_triton)(
        weight.packed,
        weight.absmax,
        weight.absmax2,
        weight.offset,
        weight.code2,
        shape=weight.shape,
        dtype=dtype,
        out=out,
        lora=lora,
    )
    return dense


def nf4_quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a matrix but for its absmaxes; see `fam_engine.kernels.nf4_quantize`."""
    # As for `dequantize`: the same bits.
    is_triton = takes_triton(weight) and weight.shape[1] % BLOCK_SIZE == 0
    quantized: tuple[torch.Tensor, torch.Tensor] = _find_kernel(
        "nf4_quantize", is_triton=is_triton
    )(weight)
    return quantized


def _add_lora_(rows: torch.Tensor, part: LoraPart) -> None:
    """Add scaling * B @ A; the product accumulates in fp32 or wider and is rounded with the sum."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    scaled_B = (part.lora_B.to(wide) * part.scaling).to(rows.dtype)
    rows.addmm_(scaled_B, part.lora_A.to(rows.dtype))


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
        residual.add_(_few_rows_linear(x, weight))
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
        swiglu(_few_rows_linear(x, gate_up), out=out)
        return out
    dense = scratch.dense(gate_up)
    for rows in _row_tiles(x.shape[0], scratch.fixed_rows or mlp_rows(x.device.type)):
        part = _filled(x[rows], scratch.fixed_rows or 0)
        product = functional.linear(part, dense, gate_up.bias)
        swiglu(product[: rows.stop - rows.start], out=out[rows])
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
    fits = x.shape[0] <= MAX_ROWS and x.shape[1] % BLOCK_SIZE == 0
    is_free = scratch.fixed_rows is None
    return is_free and takes_triton(x) and isinstance(weight.weight, tuple) and fits


def takes_few_rows(weights: Weights, like: torch.Tensor) -> bool:
    """Whether layers take any number of rows up to 64, each with the same bits whatever the number."""
    return all(
        isinstance(linear.weight, tuple) and linear.in_features % BLOCK_SIZE == 0
        for layer in weights.layers
        for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)
    ) and takes_triton(like)


def _few_rows_linear(x: torch.Tensor, weight: Linear) -> torch.Tensor:
    """Return x @ (W + scaling * B @ A)^T + bias without W in memory."""
    out = x.new_empty((x.shape[0], weight.out_features))
    for part, rows, factors in _sources(weight):
        _kernel("nf4_linear", x)(
            x,
            part.packed,
            part.absmax,
            part.absmax2,
            part.offset,
            part.code2,
            out=out[:, rows],
            bias=None if weight.bias is None else weight.bias[rows],
            lora=factors,
        )
    return out


def head_logits(hidden_RD: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """Return all logits [R, V] in fp32 (fp64 for fp64), for choosing a token; R a multiple of 64."""
    wide = torch.promote_types(hidden_RD.dtype, torch.float32)
    shape = (hidden_RD.shape[0], head_VD.shape[0])
    logits_RV = torch.empty(shape, dtype=wide, device=hidden_RD.device)
    if takes_triton(hidden_RD) and hidden_RD.dtype == head_VD.dtype:
        # The head is read once, as it is stored.
        mm_fp32(hidden_RD, head_VD.t(), out=logits_RV)
        return logits_RV
    hidden_RD = hidden_RD.to(wide)
    for head, columns in zip(
        head_VD.split(_HEAD_COLUMNS), logits_RV.split(_HEAD_COLUMNS, dim=1), strict=True
    ):
        torch.mm(hidden_RD, head.to(wide).t(), out=columns)
    return logits_RV
