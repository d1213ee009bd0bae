# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Cross-entropy of given tokens from hidden states, with its gradient: two products and a Triton kernel between them.

Equations and dimensions as in `linear_cross_entropy.py`, its reference. For some rows at a time:

    Z = H W^T in fp32    G = softmax(Z) - onehot(targets) in the compute dtype, where Z was    dH = G W in fp32

Dtypes: hidden and head in bf16, fp16 or fp32; logits and exponentials in fp32; G rounded once; the last steps of nll in
fp64. Of the target, 1 - p is the sum of what the others have, not a difference, and so is nll while the target leads
(log1p): both are exact to fp32 however sure the model is. In fp16 probabilities below 6e-8 vanish.
Memory traffic for a logit: 4 bytes written by the first product, 8 read and 2 written here, 2 read by the second. At a
hidden size of 4096 the products make 16,384 operations for those 16 bytes. Work: 4 D V operations a row, 2 D V without
gradient.

Rows at a time: at least 1024, so that reading the head is hidden behind the products, which make 1024 operations for a
byte of it; more while the tile is within 640 MiB. [1024, 128256] takes 525 MB, [1024, 151936] 622 MB; only beyond
V = 163,840 is the tile larger than that bound (262,144: 1.07 GB).

One tile of all of V, not tiles of V with a running maximum as on the CPU: the second product then sums over all of V in
its own registers, the gradient need not be read, rescaled and written again for each tile, and a row has a plain
softmax. What it costs is the tile's memory.
Rejected: making logits anew for the gradient (cut cross-entropy, arXiv 2411.09009: 6 D V operations), logits in bf16
(biases sums of log-probs), 128 rows at a time (reading the head then takes longer than the products).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant
from fam_engine.kernels.mm_fp32 import mm_fp32

_MIN_ROWS = 1024
_TILE_BYTES = 640 * 2**20
# Rows of the tile start at multiples of so many logits: products want 16 bytes, for G too.
_ALIGNED = 64
# Four loads of 16 bytes a thread.
_BLOCK = 4096
# Vocabularies of Llama 3 and of Qwen2.5 and Qwen3.
_SHIPPED = (128_256, 151_936)


# Whether the gradient is wanted is no constant: without its stores the compiler gives logits to other threads, whose
# sums have other bits.
@triton.jit(do_not_specialize=["with_gradient"])
def _softmax_minus_onehot(
    logits,
    gradient,
    targets,
    lead,
    rest,
    row_stride,
    with_gradient,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of one row, write max - z_target, the others' sum of exp(z - max), and the gradient over the logits."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    target = tl.load(targets + row)
    z_target = tl.load(logits + target)

    # One pass for both: what was summed is rescaled whenever a block raises the maximum.
    highest = tl.full([], float("-inf"), tl.float32)
    others = tl.zeros([], tl.float32)
    for first in range(0, V, BLOCK):
        column = first + tl.arange(0, BLOCK)
        z = tl.load(logits + column, mask=column < V, other=float("-inf"))
        raised = tl.maximum(highest, tl.max(z, 0))
        exponentials = tl.where(column == target, 0.0, tl.exp(z - raised))
        others = others * tl.exp(highest - raised) + tl.sum(exponentials, 0)
        highest = raised
    tl.store(lead + row, highest - z_target)
    tl.store(rest + row, others)

    if with_gradient:
        scale = 1 / (others + tl.exp(z_target - highest))
        gradient += row * (row_stride * 4 // (gradient.dtype.element_ty.primitive_bitwidth // 8))
        for first in range(0, V, BLOCK):
            column = first + tl.arange(0, BLOCK)
            z = tl.load(logits + column, mask=column < V, other=float("-inf"))
            p = tl.where(column == target, -others, tl.exp(z - highest)) * scale
            # G lies in the first half of Z's memory: its first block over logits of the same block, which all
            # threads must have read; its later blocks over logits of earlier ones.
            tl.debug_barrier()
            tl.store(gradient + column, p.to(gradient.dtype.element_ty), mask=column < V)


def linear_cross_entropy(
    hidden_RD: torch.Tensor,
    head_VD: torch.Tensor,
    targets_R: torch.Tensor,
    *,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the negative log-likelihood of one target a row.

    Args:
        hidden_RD: [R, D] in bf16, fp16 or fp32.
        head_VD: [V, D] of the same dtype.
        targets_R: int64[R], ids below V.
        with_gradient: Whether to make the gradient too.

    Returns:
        float64[R], nats, the same bits with and without gradient; and d nll_r / d hidden_r as
        fp32[R, D], or None.
    """
    num_rows, vocab_size = hidden_RD.shape[0], head_VD.shape[0]
    assert head_VD.dtype == hidden_RD.dtype
    assert targets_R.shape == (num_rows,)
    assert targets_R.is_contiguous()
    gradient_RD = torch.empty_like(hidden_RD, dtype=torch.float32) if with_gradient else None
    lead_R, rest_R = hidden_RD.new_empty((2, num_rows), dtype=torch.float32)
    tile = _tile(num_rows, vocab_size, hidden_RD.device)
    launch = _launch(vocab_size)
    for start in range(0, num_rows, max(1, len(tile))):
        rows = slice(start, start + len(tile))
        hidden = hidden_RD[rows]
        logits = tile[: len(hidden)]
        mm_fp32(hidden, head_VD.t(), out=logits[:, :vocab_size])
        g = logits.view(hidden.dtype)[:, :vocab_size]
        _softmax_minus_onehot[(len(hidden),)](
            logits,
            g,
            targets_R[rows],
            lead_R[rows],
            rest_R[rows],
            tile.stride(0),
            int(with_gradient),
            **launch.keywords,
        )
        if gradient_RD is not None:
            mm_fp32(g, head_VD, out=gradient_RD[rows])
    # With a leading target, max - z_target is 0 and this is log1p(rest).
    lead_R = lead_R.double()
    return lead_R + torch.log1p(rest_R + torch.expm1(-lead_R)), gradient_RD


def _tile(num_rows: int, vocab_size: int, device: torch.device) -> torch.Tensor:
    """Make fp32 memory for the logits of some rows, [rows, V and a few more]."""
    width = -(-vocab_size // _ALIGNED) * _ALIGNED
    most = max(_MIN_ROWS, _TILE_BYTES // (4 * width) // _ALIGNED * _ALIGNED)
    return torch.empty((min(num_rows, most), width), dtype=torch.float32, device=device)


def _launch(vocab_size: int) -> Launch:
    return Launch({"V": vocab_size, "BLOCK": _BLOCK}, num_warps=8)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    fp32 = POINTER[torch.float32]
    for vocab_size in _SHIPPED:
        yield Variant(
            name=f"linear_cross_entropy bf16 V={vocab_size}",
            kernel=_softmax_minus_onehot,
            arguments={
                "logits": fp32,
                "gradient": POINTER[torch.bfloat16],
                "targets": POINTER[torch.int64],
                "lead": fp32,
                "rest": fp32,
                "row_stride": "i32",
                "with_gradient": "i32",
            },
            launch=_launch(vocab_size),
            divisible=frozenset({"row_stride"}),
        )
