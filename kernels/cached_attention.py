"""Attention of one new token a slot over the keys kept for that slot: torch reference and CPU path.

Equation: out = softmax(q k^T / sqrt(d)) v, per head; query head h uses key head h // (H / G). The new token's own key
and value are first written to the slot's last position.

Dimensions: S slots, C positions a slot has room for, E prompts kept for several slots, P positions
a prompt has room for, H query heads, G key heads, d head width.
Dtypes: q, k, v, out in bf16, fp32 or fp64; scores and softmax as scaled_dot_product_attention keeps
them, in fp32 or wider.
Memory traffic: the keys and values of each slot's length once. Query heads that share a key head are
given as rows of one query block, so that they read it once.

On the CPU one call a slot: then the shapes, and so the bits, follow from the slot's own length. All
slots in one masked call are 1.5 to 5 times as fast (64 slots of 400 or 50 keys, one core), but the
bits of a slot then change with the longest of them and, with 2 threads, with their number (measured,
torch 2.15).

The samples of one question may keep their prompt once (`Prompts`): n samples then take P + nC
positions instead of n(P + C). Here what a slot sees is put together first, so its bits are those of
a slot that has it all; that copies every prompt at every step: to compare with, not to run. On the CPU
no way to run it was as fast as slots that have it all (64 slots, embedded model's heads, processor time
over that of slots that have it all): put together in one place that stays in the cache, 1.7 without
siblings and 1.0 to 1.6 with 8; prompt and own positions apart, merged by their sums, with calls of
neighbouring slots joined where they see the same positions, 2.2 and 0.7 to 1.8; the same with masks
over whole blocks of 64 positions, 1.3 to 1.8 and 1.1 to 1.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, eq=False)
class Prompts:
    """What comes before the slots' own positions, kept once for all slots that share it.

    Attributes:
        kv_EPGd: [E, P, 2G, d], keys, then values.
        entry_S: int32[S], the prompt of a slot.
        lengths_S: int32[S], how many positions of it come before the slot's own; 0: none.
    """

    kv_EPGd: torch.Tensor
    entry_S: torch.Tensor
    lengths_S: torch.Tensor


def cached_attention(
    query_SHd: torch.Tensor,
    kv_SCGd: torch.Tensor,
    new_SGd: torch.Tensor,
    lengths_S: torch.Tensor,
    *,
    window: int | None,
    out_SHd: torch.Tensor,
    prompts: Prompts | None = None,
) -> None:
    """Keep the new keys and values, attend and write the result.

    Args:
        query_SHd: [S, H, d], one query a slot, at the last of its positions.
        kv_SCGd: [S, C, 2G, d], keys, then values; G divides H. C is a multiple of 64, and what lies
            beyond a slot's length is finite.
        new_SGd: [S, 2G, d], the key and value of each slot's last position, written there.
        lengths_S: int32[S], how many of a slot's own positions to see, from the first, the new one
            with them; 0 where a slot is empty, in which nothing is written.
        window: How many positions a query sees at most, itself included; None: all.
        out_SHd: [S, H, d]. Rows of empty slots are left as they are or get finite values.
        prompts: Positions before the slots' own.
    """
    is_active_S = lengths_S > 0
    kv_SCGd[is_active_S, lengths_S[is_active_S] - 1] = new_SGd[is_active_S]
    if prompts is not None:
        kv_SCGd, lengths_S = _put_together(kv_SCGd, lengths_S, prompts)
    num_groups = kv_SCGd.shape[2] // 2
    query = query_SHd.unflatten(1, (num_groups, -1))  # [S, G, H / G, d]
    key, value = kv_SCGd.transpose(1, 2).split(num_groups, dim=1)  # [S, G, C, d]
    out = out_SHd.unflatten(1, (num_groups, -1))
    for slot, length in enumerate(lengths_S.tolist()):
        if length:
            one = slice(slot, slot + 1)
            seen = slice(0 if window is None else max(0, length - window), length)
            out[one] = scaled_dot_product_attention(
                query[one], key[one, :, seen], value[one, :, seen]
            )


def _put_together(
    kv_SCGd: torch.Tensor, lengths_S: torch.Tensor, prompts: Prompts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give each slot its prompt and what follows in one row, and the lengths of both."""
    before_S = prompts.lengths_S.where(lengths_S > 0, 0)
    room = prompts.kv_EPGd.shape[1] + kv_SCGd.shape[1]
    whole = kv_SCGd.new_zeros((kv_SCGd.shape[0], room, *kv_SCGd.shape[2:]))
    places = zip(prompts.entry_S.tolist(), before_S.tolist(), lengths_S.tolist(), strict=True)
    for slot, (entry, before, length) in enumerate(places):
        whole[slot, :before] = prompts.kv_EPGd[entry, :before]
        whole[slot, before : before + length] = kv_SCGd[slot, :length]
    return whole, before_S + lengths_S
