# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Attention of one new token a slot over the keys kept for that slot, as Triton kernels.

Equation and dimensions as in `cached_attention.py`, the reference. Dtypes: bf16, fp16 or fp32; scores,
softmax and sums in fp32; weights are rounded to the values' dtype for the second product.
Memory traffic: each slot's keys and values once, 4 G d bytes a position in bf16, of the new one twice; and 4 (d + 1) H
bytes written and read again a part of 256 positions, 1.6 % of that for H / G = 4.

Reading is all there is to do (2 H / G products a value read), and one slot has few heads: so each
program takes one part of 256 positions of one slot and key head, writes its own softmax and the
logarithm of its sum, and a second kernel merges the parts of a head in their order (Dao et al. 2023,
"Flash-Decoding for long-context inference"). The grid of parts is fixed to positions, for the prompt
and for the slot's own: so a slot's bits depend on its lengths alone, not on the room it has or on
other slots. The H / G query heads of a key head are the rows of one product of 16 rows, the fewest
that matrix units take; rows without a head are zeros.

A shared prompt (`Prompts`) is so many parts more. Programs of neighbouring slots run at the same time,
so one reads it from memory and the others from the cache (4 MB a layer for 1,000 positions, 8 heads
of 128). All slots of a prompt as rows of one product (Juravsky et al. 2024, "Hydragen", arXiv
2402.05099) would read it once from the cache too; it needs slots sorted by prompt, and is left until
a measurement asks for it. On an H100 64 slots of 512 positions with the heads of 8B are read at 74 % of the rate of a
copy. (Measured before the new position was written here: that was a launch of its own, 3.8 us a layer.)

The program that has a slot's last position writes the new key and value there, before it reads. What lies beyond a
slot's lengths is not read. Empty slots get zeros. Lengths stay on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl

from fam_engine.kernels.cached_attention import Prompts
from fam_engine.kernels.launching import POINTER, Launch, Variant, await_previous, cdiv

# Positions a program.
_PART = 256
# Parts merged at a time.
_MERGED = 16
# Fewest rows of a product.
_MIN_ROWS = 16
# Query heads, key heads, head width: Llama-3.2 1B and 3B, Llama-3.1 8B, Qwen2.5-0.5B.
_SHIPPED = ((32, 8, 64), (24, 8, 128), (32, 8, 128), (14, 2, 64))
# Capabilities whose own matrix instructions take 64 rows or more: there 16 rows use the older ones.
_TALL = (90, 100)


@triton.jit(do_not_specialize=["num_prompt_parts", "num_parts"])
def _attend_part(
    query,
    kv,
    new_kv,
    lengths,
    prompt_kv,
    prompt_entry,
    prompt_lengths,
    part_out,
    part_lse,
    query_stride,
    kv_stride,
    new_stride,
    prompt_stride,
    num_prompt_parts,
    num_parts,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_PROMPTS: tl.constexpr,
    G: tl.constexpr,
    SHARERS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    part = tl.program_id(2)
    column = tl.arange(0, COLUMNS)
    is_column = column < D

    await_previous()
    # ---- the new position: its program writes it and then sees it ----
    length = tl.load(lengths + slot)
    kv += slot * kv_stride
    if (length > 0) & (part - num_prompt_parts == (length - 1) // PART):
        new = new_kv + slot * new_stride + group * D + column
        last = kv + (length - 1).to(tl.int64) * (2 * G * D) + group * D + column
        tl.store(last, tl.load(new, mask=is_column), mask=is_column)
        tl.store(last + G * D, tl.load(new + G * D, mask=is_column), mask=is_column)
        tl.debug_barrier()

    # ---- which positions: [start, stop) of the prompt's or of the slot's own ----
    place = part
    before = 0
    if HAS_PROMPTS:
        before = tl.load(prompt_lengths + slot)
    first = 0
    if WINDOW is not None:
        first = tl.maximum(before + length - WINDOW, 0)
    if HAS_PROMPTS:
        is_prompt = part < num_prompt_parts
        shared = prompt_kv + tl.load(prompt_entry + slot).to(tl.int64) * prompt_stride
        kv = tl.where(is_prompt, shared, kv)
        place = tl.where(is_prompt, part, part - num_prompt_parts)
        # An empty slot sees nothing of a prompt either.
        before = tl.where(length > 0, before, 0)
        length = tl.where(is_prompt, before, length)
        first = tl.where(is_prompt, first, tl.maximum(first - before, 0))
    start = tl.maximum(place * PART, first)
    stop = tl.minimum(place * PART + PART, length)

    # ---- where the result goes ----
    row = tl.arange(0, ROWS)
    is_head = row < SHARERS
    result = (slot * G * SHARERS + group * SHARERS + row) * num_parts + part
    if start >= stop:
        tl.store(part_lse + result, tl.full([ROWS], float("-inf"), tl.float32), mask=is_head)
        return

    # ---- the queries ----
    query += slot * query_stride + group * SHARERS * D
    q_place = row[:, None] * D + column[None, :]
    q = tl.load(query + q_place, mask=is_head[:, None] & is_column[None, :], other=0.0)

    # ---- online softmax over the keys ----
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, COLUMNS], tl.float32)
    kv_place = tl.arange(0, KEYS)[:, None] * (2 * G * D) + column[None, :]
    begin = start - start % KEYS
    keys = kv + begin.to(tl.int64) * (2 * G * D) + group * D
    for block in range(begin, stop, KEYS):
        position = block + tl.arange(0, KEYS)
        is_seen = (position >= start) & (position < stop)
        inside = is_seen[:, None] & is_column[None, :]
        k = tl.load(keys + kv_place, mask=inside, other=0.0)
        v = tl.load(keys + G * D + kv_place, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrunk = tl.exp2(highest - higher)
        total = total * shrunk + tl.sum(weights, 1)
        mixed = mixed * shrunk[:, None]
        mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision="ieee")
        highest = higher
        keys += KEYS * 2 * G * D

    # ---- store ----
    tl.store(part_lse + result, highest + tl.log2(total), mask=is_head)
    out_place = result[:, None] * D + column[None, :]
    mixed = mixed / total[:, None]
    tl.store(part_out + out_place, mixed, mask=is_head[:, None] & is_column[None, :])


@triton.jit(do_not_specialize=["num_prompt_parts", "num_parts"])
def _merge_parts(
    part_out,
    part_lse,
    out,
    out_stride,
    num_prompt_parts,
    num_parts,
    H: tl.constexpr,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGED: tl.constexpr,
):
    await_previous()
    slot = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = (slot * H + head) * num_parts
    part_lse += first
    part_out += first * D
    column = tl.arange(0, COLUMNS)
    is_column = column < D

    highest = -3.0e38  # finite, so that a part without positions weighs exp2(-inf) = 0
    for block in range(0, num_parts, MERGED):
        part = block + tl.arange(0, MERGED)
        lse = tl.load(part_lse + part, mask=part < num_parts, other=float("-inf"))
        highest = tl.maximum(highest, tl.max(lse, 0))

    # The prompt's parts and the slot's own in blocks of their own, or the room a prompt has would change the order of
    # sums.
    prompt_blocks = tl.cdiv(num_prompt_parts, MERGED)
    own_blocks = tl.cdiv(num_parts - num_prompt_parts, MERGED)
    total = tl.zeros([MERGED], tl.float32)
    mixed = tl.zeros([COLUMNS], tl.float32)
    for block in range(prompt_blocks + own_blocks):
        is_prompt = block < prompt_blocks
        begin = tl.where(is_prompt, 0, num_prompt_parts - prompt_blocks * MERGED)
        part = begin + block * MERGED + tl.arange(0, MERGED)
        stop = tl.where(is_prompt, num_prompt_parts, num_parts)
        lse = tl.load(part_lse + part, mask=part < stop, other=float("-inf"))
        weights = tl.exp2(lse - highest)
        place = part.to(tl.int64)[:, None] * D + column[None, :]
        # Where it is NaN, values are loaded too, and NaN comes through.
        inside = (lse != float("-inf"))[:, None] & is_column[None, :]
        values = tl.load(part_out + place, mask=inside, other=0.0)
        total += weights
        mixed += tl.sum(weights[:, None] * values, 0)
    sum_of_all = tl.sum(total, 0)
    result = mixed / tl.where(sum_of_all == 0, 1.0, sum_of_all)
    out += slot * out_stride + head * D
    tl.store(out + column, result.to(out.dtype.element_ty), mask=is_column)


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
        query_SHd: [S, H, d] in bf16, fp16 or fp32, one query a slot, at the last of its positions;
            any stride between slots.
        kv_SCGd: [S, C, 2G, d], keys, then values, of the same dtype; G divides H.
        new_SGd: [S, 2G, d], the key and value of each slot's last position, written there; any
            stride between slots.
        lengths_S: int32[S], how many of a slot's own positions to see, from the first, the new one
            with them; 0 where a slot is empty, in which nothing is written.
        window: How many positions a query sees at most, itself included; None: all.
        out_SHd: [S, H, d], any stride between slots. Rows of empty slots get zeros.
        prompts: Positions before the slots' own.
    """
    num_slots, num_heads, width = query_SHd.shape
    capacity, num_groups = kv_SCGd.shape[1], kv_SCGd.shape[2] // 2
    assert kv_SCGd.stride()[1:] == (2 * num_groups * width, width, 1)
    assert new_SGd.shape == (num_slots, 2 * num_groups, width)
    assert query_SHd.stride()[1:] == new_SGd.stride()[1:] == out_SHd.stride()[1:] == (width, 1)
    assert lengths_S.dtype == torch.int32
    shared = prompts or Prompts(kv_SCGd[:, :0], lengths_S, lengths_S)
    assert shared.kv_EPGd.stride()[1:] == kv_SCGd.stride()[1:]
    assert shared.entry_S.dtype == shared.lengths_S.dtype == torch.int32
    num_prompt_parts = cdiv(shared.kv_EPGd.shape[1], _PART)
    num_parts = num_prompt_parts + cdiv(capacity, _PART)
    part_lse = query_SHd.new_empty((num_slots, num_heads, num_parts), dtype=torch.float32)
    part_out = part_lse.new_empty((*part_lse.shape, width))
    launch = _part_launch(num_heads, num_groups, width, window, has_prompts=prompts is not None)
    _attend_part[num_slots, num_groups, num_parts](
        query_SHd,
        kv_SCGd,
        new_SGd,
        lengths_S,
        shared.kv_EPGd,
        shared.entry_S,
        shared.lengths_S,
        part_out,
        part_lse,
        query_SHd.stride(0),
        kv_SCGd.stride(0),
        new_SGd.stride(0),
        shared.kv_EPGd.stride(0),
        num_prompt_parts,
        num_parts,
        **launch.keywords,
    )
    merging = _merge_launch(num_heads, width).keywords
    _merge_parts[num_slots, num_heads](
        part_out, part_lse, out_SHd, out_SHd.stride(0), num_prompt_parts, num_parts, **merging
    )


@cache
def _part_launch(
    num_heads: int, num_groups: int, width: int, window: int | None, *, has_prompts: bool
) -> Launch:
    columns = max(16, triton.next_power_of_2(width))
    sharers = num_heads // num_groups
    constants = {
        "SCALE": math.log2(math.e) / math.sqrt(width),
        "WINDOW": window,
        "HAS_PROMPTS": has_prompts,
        "G": num_groups,
        "SHARERS": sharers,
        "D": width,
        "ROWS": max(_MIN_ROWS, triton.next_power_of_2(sharers)),
        "COLUMNS": columns,
        # 8 KB of keys and of values at a time in bf16: enough programs fit to keep memory busy.
        "KEYS": min(64, max(16, 4096 // columns)),
        "PART": _PART,
    }
    return Launch(constants, num_stages=3, is_early=True)


@cache
def _merge_launch(num_heads: int, width: int) -> Launch:
    columns = max(16, triton.next_power_of_2(width))
    constants = {"H": num_heads, "D": width, "COLUMNS": columns, "MERGED": _MERGED}
    return Launch(constants, num_warps=2, is_early=True)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    for heads, groups, width in _SHIPPED:
        shape = f"bf16 {heads}/{groups}/{width}"
        for has_prompts in (False, True):
            yield Variant(
                name=f"cached_attention {shape}{' prompts' * has_prompts}",
                kernel=_attend_part,
                arguments=_PART_ARGUMENTS,
                launch=_part_launch(heads, groups, width, None, has_prompts=has_prompts),
                divisible=frozenset({"query_stride", "kv_stride", "new_stride", "prompt_stride"}),
                uses_matrix_units=capability not in _TALL,
            )
        yield Variant(
            name=f"cached_attention merge {shape}",
            kernel=_merge_parts,
            arguments=_MERGE_ARGUMENTS,
            launch=_merge_launch(heads, width),
            divisible=frozenset({"out_stride"}),
        )


_INT32, _FLOAT32, _BF16 = POINTER[torch.int32], POINTER[torch.float32], POINTER[torch.bfloat16]
_PART_ARGUMENTS = {
    "query": _BF16,
    "kv": _BF16,
    "new_kv": _BF16,
    "lengths": _INT32,
    "prompt_kv": _BF16,
    "prompt_entry": _INT32,
    "prompt_lengths": _INT32,
    "part_out": _FLOAT32,
    "part_lse": _FLOAT32,
    "query_stride": "i32",
    "kv_stride": "i32",
    "new_stride": "i32",
    "prompt_stride": "i32",
    "num_prompt_parts": "i32",
    "num_parts": "i32",
}
_MERGE_ARGUMENTS = {
    "part_out": _FLOAT32,
    "part_lse": _FLOAT32,
    "out": _BF16,
    "out_stride": "i32",
    "num_prompt_parts": "i32",
    "num_parts": "i32",
}
