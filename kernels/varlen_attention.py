"""Attention of all sequences of a packed batch in one call: torch's flash kernel on a GPU, and its plain reference.

Equation: out = softmax(q k^T / sqrt(d) + mask) v, per head and sequence; query head h uses key head h // (H / G). The
last query of a sequence is at the place of its last key (causal, aligned at the bottom right): with n queries and m
keys, query i sees keys 0 to m - n + i, and with a window only the last `window` of them.

Dimensions: Q queries of all sequences, S keys of all sequences, H query heads, G key heads, d head width.
Dtypes: q, k, v, out in bf16 or fp16 for flash, any for the reference, on any device; scores, softmax and lse in fp32
(fp64 for fp64).
Memory traffic: q, k, v read, out and an lse a query and head written; on a GPU no scores in memory.

The GPU's kernel is FlashAttention-2 (Dao 2023, arXiv 2307.08691) as torch ships it, by the operation
`aten::_flash_attention_forward`, whose arguments used here are the same in torch 2.11 to 2.15. Not by the public
`torch.nn.attention.varlen.varlen_attn`: grouped heads need `enable_gqa=True` from 2.12 on, which 2.11 does not know;
from 2.14 on it may choose cuDNN by the lengths of a batch, so that a record's bits would depend on its neighbours; and
its dispatch through a custom operation costs time in each layer.

What torch's sources (`flash_api.cpp`, `mha_varlen_fwd`) say of the operation: compute capability 8.0 or newer, bf16 or
fp16, d a multiple of 8 up to 256, G divides H, last dimensions contiguous, int32 `cu_seqlens`; causal masks at the
bottom right; keys are split over blocks only for paged keys, or for `max_seqlen_q == 1` without a window on the right,
which is always given here. So the sums of a query run over blocks of keys counted from the first key of its sequence,
whatever the batch. Blocks of a tile that a query does not see add exact zeros; but 0 * nan is nan: what is not finite
may spread to earlier queries of the same sequence (the reference does the same), never to other sequences.

On an H100 16,384 queries in documents of 512 with the heads of 8B take 0.47 ms, 19 % of the rate of large products.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import torch
from torch.utils import deterministic

_memory: Any = deterministic  # whose setting is a property of the module
_FLASH_DTYPES: Final = (torch.bfloat16, torch.float16)
_HEAD_DIM_GRID: Final = 8
_LARGEST_HEAD_DIM: Final = 256
_OLDEST_CAPABILITY: Final = (8, 0)


def is_supported(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the flash kernel takes such queries, keys and values."""
    return (
        device.type == "cuda"
        and dtype in _FLASH_DTYPES
        and head_dim % _HEAD_DIM_GRID == 0
        and head_dim <= _LARGEST_HEAD_DIM
        and torch.cuda.get_device_capability(device) >= _OLDEST_CAPABILITY
    )


def _takes_flash(query_QHd: torch.Tensor) -> bool:
    """Whether torch's kernel is called, which refuses what it does not support; fp32 and fp64 are for reference."""
    return query_QHd.is_cuda and query_QHd.dtype in _FLASH_DTYPES


def varlen_attention(
    query_QHd: torch.Tensor,
    key_SGd: torch.Tensor,
    value_SGd: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend.

    Args:
        query_QHd: [Q, H, d], last dimension contiguous.
        key_SGd: [S, G, d], last dimension contiguous.
        value_SGd: Like `key_SGd`.
        cu_seqlens_q: int32[sequences + 1] on the device, 0 to Q: queries of sequence i are rows
            cu_seqlens_q[i] to cu_seqlens_q[i + 1]. All queries belong to a sequence.
        cu_seqlens_k: The same of keys, 0 to S. A sequence has as many keys as queries, or more.
        max_seqlen_q: Queries of the longest sequence, or more.
        max_seqlen_k: Keys of the longest sequence, or more.
        window: How many keys a query sees at most, its own place included; None: all before it.

    Returns:
        out_QHd of the queries' dtype, and lse_HQ in fp32 (fp64 for fp64): the logarithm of a query's sum of
        exp(scores), for `varlen_attention_backward`.
    """
    if not _takes_flash(query_QHd):
        return _forward_by_sequence(
            query_QHd, key_SGd, value_SGd, cu_seqlens_q, cu_seqlens_k, window
        )
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query_QHd,
        key_SGd,
        value_SGd,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        _bound(max_seqlen_k, window),
        0.0,  # dropout
        window is None,
        False,  # return_debug_mask
        window_size_left=_left(window),
        window_size_right=0,
    )
    return out, lse


def varlen_attention_backward(
    grad_QHd: torch.Tensor,
    query_QHd: torch.Tensor,
    key_SGd: torch.Tensor,
    value_SGd: torch.Tensor,
    out_QHd: torch.Tensor,
    lse_HQ: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the gradients of queries, keys and values (Dao 2023, algorithm 2); sums in a fixed order.

    On a GPU it takes (Q + 128 * sequences) * H * d fp32 values of scratch memory, d rounded up to a multiple of 32, and
    that ceil(multiprocessors / (sequences * H)) times: what blocks of keys add is added up in a fixed order.

    Args:
        grad_QHd: Gradient of `out_QHd`, of its dtype.
        query_QHd: What `varlen_attention` was given; so are the arguments not named here.
        key_SGd: ...
        value_SGd: ...
        out_QHd: What it gave.
        lse_HQ: ...
        cu_seqlens_q: ...
        cu_seqlens_k: ...
        max_seqlen_q: ...
        max_seqlen_k: ...
        window: ...

    Returns:
        Gradients [Q, H, d], [S, G, d], [S, G, d] in the dtype of the queries.
    """
    if not _takes_flash(query_QHd):
        return _backward_by_sequence(
            (grad_QHd, query_QHd, key_SGd, value_SGd, out_QHd, lse_HQ),
            cu_seqlens_q,
            cu_seqlens_k,
            window,
        )
    with _deterministic():
        grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = (
            torch.ops.aten._flash_attention_backward(
                grad_QHd,
                query_QHd,
                key_SGd,
                value_SGd,
                out_QHd,
                lse_HQ,
                cu_seqlens_q,
                cu_seqlens_k,
                max_seqlen_q,
                _bound(max_seqlen_k, window),
                0.0,  # dropout, whose two states of a random generator follow
                window is None,
                torch.zeros(2, dtype=torch.uint64, device=query_QHd.device),
                torch.empty(0, device=query_QHd.device),
                window_size_left=_left(window),
                window_size_right=0,
            )
        )
    return grads


def _left(window: int | None) -> int:
    """Give how many keys before its own a query sees; -1: all."""
    return -1 if window is None else window - 1


def _bound(max_seqlen_k: int, window: int | None) -> int:
    """Give a bound that is above the window.

    A window that no key is outside of would be dropped, and with it the blocks' sizes may change: the bits of a record
    would depend on the longest of its batch.
    """
    return max_seqlen_k if window is None else max(max_seqlen_k, window)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Let torch add gradients of queries up in a fixed order; by default atomic adds come in any order."""
    before, fills = torch.get_deterministic_debug_mode(), _memory.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    # Else all that the kernel is about to write would be filled before.
    _memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        _memory.fill_uninitialized_memory = fills


# -- the plain reference -----------------------------------------------------------------------------


def _sequences(
    cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor
) -> Iterator[tuple[slice, slice]]:
    """Yield the queries and the keys of each sequence."""
    pairs = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
    for queries, keys in pairs:
        yield slice(*queries), slice(*keys)


def _scores(query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
    """Give scaled scores [G, H / G, Q, S] of one sequence, -inf where a query does not see a key."""
    num_queries, num_keys = query.shape[0], key.shape[0]
    key_place = torch.arange(num_keys, device=key.device)
    distance = key_place[num_keys - num_queries :, None] - key_place
    hidden = (distance < 0) | (distance >= (num_keys if window is None else window))
    scores: torch.Tensor = torch.einsum("qgrd,sgd->grqs", query, key) * query.shape[-1] ** -0.5
    return scores.masked_fill(hidden, -torch.inf)


def _wide(x: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Give [rows, heads, d] as [rows, G, heads / G, d] in fp32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.view(x.shape[0], num_groups, -1, x.shape[2])


def _forward_by_sequence(
    query_QHd: torch.Tensor,
    key_SGd: torch.Tensor,
    value_SGd: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    query = _wide(query_QHd, key_SGd.shape[1])
    key, value = key_SGd.to(query.dtype), value_SGd.to(query.dtype)
    out, lse = torch.empty_like(query), query.new_empty(query.shape[:-1])
    for queries, keys in _sequences(cu_seqlens_q, cu_seqlens_k):
        scores = _scores(query[queries], key[keys], window)
        total = scores.logsumexp(-1)
        weights = (scores - total[..., None]).exp()
        out[queries] = torch.einsum("grqs,sgd->qgrd", weights, value[keys])
        lse[queries] = total.permute(2, 0, 1)
    return out.flatten(1, 2).to(query_QHd.dtype), lse.flatten(1).t().contiguous()


def _backward_by_sequence(
    tensors: tuple[torch.Tensor, ...],
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_QHd, query_QHd, key_SGd, value_SGd, out_QHd, lse_HQ = tensors
    groups = key_SGd.shape[1]
    grad, query, out = (_wide(x, groups) for x in (grad_QHd, query_QHd, out_QHd))
    key, value = key_SGd.to(query.dtype), value_SGd.to(query.dtype)
    lse, delta = lse_HQ.unflatten(0, (groups, -1)), (grad * out).sum(-1).permute(1, 2, 0)
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(key)
    for queries, keys in _sequences(cu_seqlens_q, cu_seqlens_k):
        q, k, v, dy = query[queries], key[keys], value[keys], grad[queries]
        weights = (_scores(q, k, window) - lse[..., queries, None]).exp()
        d_weights = torch.einsum("qgrd,sgd->grqs", dy, v)
        d_scores = weights * (d_weights - delta[..., queries, None]) * q.shape[-1] ** -0.5
        d_query[queries] = torch.einsum("grqs,sgd->qgrd", d_scores, k)
        d_key[keys] = torch.einsum("grqs,qgrd->sgd", d_scores, q)
        d_value[keys] = torch.einsum("grqs,qgrd->sgd", weights, dy)
    dtype = query_QHd.dtype
    return d_query.flatten(1, 2).to(dtype), d_key.to(dtype), d_value.to(dtype)
