"""Attention of one run of queries over the keys it may see: torch reference and CPU path.

Equation: out = softmax(q k^T / sqrt(d) + mask) v, per head; query head h uses key head h // (H / G).

Dimensions: Q queries (consecutive positions), S keys, H query heads, G key heads, d head width.
Dtypes: q, k, v, out in bf16, fp32 or fp64; scores and softmax in fp32 (fp64 for fp64), as torch's
scaled_dot_product_attention keeps them; its CPU flash kernel never holds [Q, S] for all heads.
Memory traffic: q, k, v read once, out written once, for short runs all within the cache.

One call a run, so that shapes depend on the record alone. Query heads that share a key head are
given as one batch entry with keys of stride 0: no copy, and the same bits and speed as `enable_gqa`
(measured, torch 2.15, one core). Products and softmax written out take 0.8 to 2.8 times as long in
fp32; in bf16 0.6 to 1.5 times (0.56 for 150 queries over 750 keys), but with scores rounded to bf16.
Reference: Dao et al. 2022, arXiv 2205.14135.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def attention(
    query_QHd: torch.Tensor,
    key_SGd: torch.Tensor,
    value_SGd: torch.Tensor,
    *,
    out_QHd: torch.Tensor,
    mask_QS: torch.Tensor | None,
    is_causal: bool,
) -> None:
    """Attend and write the result.

    Args:
        query_QHd: [Q, H, d].
        key_SGd: [S, G, d]; G divides H.
        value_SGd: Like `key_SGd`.
        out_QHd: [Q, H, d].
        mask_QS: [Q, S], 0 where a query sees a key and -inf elsewhere; None: sees all.
        is_causal: Whether query i sees keys 0 to i only (then no mask, and Q == S).
    """
    num_keys, num_groups, width = key_SGd.shape
    per_group = query_QHd.shape[1] // num_groups
    shape = (num_groups, per_group, num_keys, width)
    result = scaled_dot_product_attention(
        query_QHd.unflatten(1, (num_groups, per_group)).permute(1, 2, 0, 3),
        key_SGd.transpose(0, 1)[:, None].expand(shape),
        value_SGd.transpose(0, 1)[:, None].expand(shape),
        attn_mask=mask_QS,
        is_causal=is_causal,
    )
    out_QHd.unflatten(1, (num_groups, per_group)).copy_(result.permute(2, 0, 1, 3))


def visibility_mask(
    num_queries: int, num_keys: int, *, first_query: int, window: int | None, like: torch.Tensor
) -> torch.Tensor:
    """Make the mask of consecutive queries over consecutive keys.

    Args:
        num_queries: Q.
        num_keys: S.
        first_query: Position of query 0, counted from key 0.
        window: How many keys a query sees at most, itself included; None: all before it.
        like: A tensor of the wanted dtype and device.

    Returns:
        [Q, S]: 0 where key <= query < key + window, -inf elsewhere.
    """
    query = torch.arange(first_query, first_query + num_queries, device=like.device)[:, None]
    key = torch.arange(num_keys, device=like.device)
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    zeros = torch.zeros((num_queries, num_keys), dtype=like.dtype, device=like.device)
    return zeros.masked_fill_(hidden, -torch.inf)
