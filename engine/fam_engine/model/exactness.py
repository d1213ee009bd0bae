"""`--exact` on a GPU: a record's scores are the same bits whatever it is scored with.

In: a decoder made with `exact`. Out: nothing, or a refusal. What makes bits depend on neighbours there, and what is
done:

- cuBLAS chooses its kernel, and with it the order of sums, by the number of rows. So each product has `FIXED_ROWS`
  rows, the last one of a batch filled up with zeros (1024 rows on average: 6 % of a batch of 16,384 tokens), and NF4
  matrices of few rows take the same way. Whatever the budget, one shape a matrix is ever multiplied: a job that goes on
  with smaller batches when memory runs out, or a single record, has the same bits. Rejected: batches filled up to their
  budget, which another budget would change.
- Partial sums of a split K may be added in bf16; `products` forbids that, exact or not.
- The head has a fixed number of rows, or a kernel of ours whose rows know nothing of each other; so have the other
  kernels. Flash attention adds keys up in blocks counted from the first key of a record (`kernels.varlen_attention`).
  Where torch multiplies the head (its dtype is not that of the hidden states) the promise would not hold: refused.

That one shape means one kernel, and one kernel one order of sums for all of its rows, is how cuBLAS is known to work,
not what its documentation promises. So it is tried, on each matrix of a layer, whenever a model is loaded so: rows in
another order, and beside others, must give the same bits. Each is multiplied as in a layer: two add their product to
what there is, for which cuBLAS may choose another kernel. tests/gpu/test_cuda.py tries whole records; on an H100 it
holds.

Letters: M rows, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from fam_engine.errors import DeviceError
from fam_engine.model import ops, products
from fam_engine.model.decoder import Decoder
from fam_engine.model.weights import Linear

# Of rows [M, K] and what their product may be added to [M, N].
_Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_HINT = "leave out --exact: scores then differ in their last bits with the other records of a batch"


@torch.inference_mode()
def check_exact(decoder: Decoder) -> None:
    """Make sure that rows of the decoder's products have bits of their own.

    Raises:
        DeviceError: They have not, or the head is not one of our kernels'.
    """
    head_VD = decoder.weights.head_VD
    like = torch.empty((0, head_VD.shape[1]), dtype=decoder.compute_dtype, device=decoder.device)
    if not ops.has_fused_logprob(like, head_VD):
        message = f"the head is {_name(head_VD.dtype)} and multiplied in {_name(like.dtype)}: on a GPU not exact"
        raise DeviceError(
            message, code="E_EXACT", hint="use --compute-dtype bf16, or --precision fp32"
        )
    for name, linear, multiply in _products(decoder):
        if not _rows_are_independent(decoder, linear, multiply):
            message = f"products with the matrix `{name}` depend on the place of a row: not exact"
            raise DeviceError(message, code="E_EXACT", hint=_HINT)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _products(decoder: Decoder) -> Iterator[tuple[str, Linear, _Multiply]]:
    """Yield the matrices of a layer, and the parts of one that the last layer multiplies apart; how a layer does it."""
    layer, config = decoder.weights.layers[-1], decoder.config
    cut = config.num_attention_heads * config.head_dim
    for part in (slice(None), slice(0, cut), slice(cut, None)):
        yield "qkv", layer.qkv, partial(_multiply, decoder, layer.qkv, part)
    yield "gate_up", layer.gate_up, partial(_multiply, decoder, layer.gate_up, slice(None))
    for name, linear in (("o", layer.o), ("down", layer.down)):
        yield name, linear, partial(_multiply_add, decoder, linear)


def _multiply(
    decoder: Decoder, linear: Linear, features: slice, x_MK: torch.Tensor, _: torch.Tensor
) -> torch.Tensor:
    return decoder.multiply(x_MK, linear, features)


def _multiply_add(
    decoder: Decoder, linear: Linear, x_MK: torch.Tensor, residual_MN: torch.Tensor
) -> torch.Tensor:
    total_MN = residual_MN.clone()
    decoder.multiply_add_(total_MN, x_MK, linear)
    return total_MN


def _rows_are_independent(decoder: Decoder, linear: Linear, multiply: _Multiply) -> bool:
    """Multiply random rows, then in another order, then half of them beside zeros."""
    random, num_rows = torch.Generator().manual_seed(0), products.FIXED_ROWS
    x_MK, residual_MN = (
        torch.randn((num_rows, width), generator=random).to(decoder.device, decoder.compute_dtype)
        for width in (linear.in_features, linear.out_features)
    )
    order = torch.randperm(num_rows, generator=random).to(decoder.device)
    half = slice(num_rows // 2)
    whole = multiply(x_MK, residual_MN)
    shuffled = multiply(x_MK[order], residual_MN[order])
    some = multiply(x_MK[half], residual_MN[half])
    return torch.equal(shuffled, whole[order]) and torch.equal(some, whole[half])
