"""Attention of one new token a slot over the keys kept for that slot: torch reference and CPU path.

Equation: out = softmax(q k^T / sqrt(d)) v, per head; query head h uses key head h // (H / G).

Dimensions: S slots, C positions a slot has room for, H query heads, G key heads, d head width.
Dtypes: q, k, v, out in bf16, fp32 or fp64; scores and softmax as scaled_dot_product_attention keeps
them, in fp32 or wider.
Memory traffic: the keys and values of each slot's length once. Query heads that share a key head are
given as rows of one query block, so that they read it once.

On the CPU one call a slot: then the shapes, and so the bits, follow from the slot's own length. All
slots in one masked call are 1.5 to 5 times as fast (64 slots of 400 or 50 keys, one core), but the
bits of a slot then change with the longest of them and, with 2 threads, with their number (measured,
torch 2.15). On a GPU a call a slot would be all launches, so there it is one masked call; masked
keys come after the seen ones and weigh exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn.functional import scaled_dot_product_attention

# Keys of the masked call are a multiple of this: the kernels ask for aligned masks.
KEY_GRID: Final = 64


def cached_attention(
    query_SHd: torch.Tensor,
    kv_SCGd: torch.Tensor,
    lengths: Sequence[int],
    *,
    window: int | None,
    out_SHd: torch.Tensor,
) -> None:
    """Attend and write the result.

    Args:
        query_SHd: [S, H, d], one query a slot, at the last of its positions.
        kv_SCGd: [S, C, 2G, d], keys, then values; G divides H. C is a multiple of 64, and what lies
            beyond a slot's length is finite.
        lengths: S numbers of positions to see, from the first; 0 where a slot is empty.
        window: How many positions a query sees at most, itself included; None: all.
        out_SHd: [S, H, d]. Rows of empty slots are left as they are or get finite values.
    """
    num_groups = kv_SCGd.shape[2] // 2
    query = query_SHd.unflatten(1, (num_groups, -1))  # [S, G, H / G, d]
    key, value = kv_SCGd.transpose(1, 2).split(num_groups, dim=1)  # [S, G, C, d]
    out = out_SHd.unflatten(1, (num_groups, -1))
    if query.device.type == "cuda":
        out.copy_(one_masked_call(query, key, value, lengths, window=window))
        return
    for slot, length in enumerate(lengths):
        if length:
            one = slice(slot, slot + 1)
            seen = slice(0 if window is None else max(0, length - window), length)
            out[one] = scaled_dot_product_attention(
                query[one], key[one, :, seen], value[one, :, seen]
            )


def one_masked_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    *,
    window: int | None,
) -> torch.Tensor:
    """Attend for all slots at once, as on a GPU.

    Args:
        query: [S, G, H / G, d].
        key: [S, G, C, d].
        value: Like `key`.
        lengths: As for `cached_attention`.
        window: As for `cached_attention`.

    Returns:
        [S, G, H / G, d]; rows of empty slots are finite.
    """
    mask = _mask(lengths, window, like=query)
    seen = slice(0, mask.shape[-1])
    result: torch.Tensor = scaled_dot_product_attention(
        query, key[:, :, seen], value[:, :, seen], attn_mask=mask
    )
    return result


def _mask(lengths: Sequence[int], window: int | None, *, like: torch.Tensor) -> torch.Tensor:
    """Make [S, 1, 1, keys]: 0 where a slot sees a key, -inf elsewhere."""
    # An empty slot looks at its first position: a row without any key would be NaN.
    length_S1 = torch.tensor(lengths, device=like.device).clamp_(min=1)[:, None]
    num_keys = -(-max(*lengths, 1) // KEY_GRID) * KEY_GRID
    key = torch.arange(num_keys, device=like.device)
    hidden = key >= length_S1
    if window is not None:
        hidden |= key < length_S1 - window
    zeros = torch.zeros((len(lengths), num_keys), dtype=like.dtype, device=like.device)
    return zeros.masked_fill_(hidden, -torch.inf)[:, None, None]
