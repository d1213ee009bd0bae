# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The choice of a token a row from its logits and one random number, counted by a seed and a position: Triton kernels.

Equations and dimensions as in `sample.py`, the reference. Dtypes: logits fp32; weights and their sums over a part of a
row fp32, sums over parts and the share of the random number fp64; token ids int64, logprobs fp64 of fp32 logits.
Memory traffic, in logits of a row: 2 V greedy and by temperature alone, 26 V with top-k or top-p, 38 V with both (a row
of 128,256 is 513 KB; 64 of them fit in the L2 cache of an H100).

Rows lie in parts of 2048 logits, a program each, so that one row alone keeps a GPU busy. What programs of a row find
the next kernel reads, all of it in each program, in a fixed order: nothing is added atomically, a row's bits depend on
that row alone.

Nothing is sorted. What top-k keeps, what top-p keeps and the token itself are each the same question: going down from
the largest logit, at which value does a sum (of ones, of weights, of weights) pass a goal? The sum of all weights at or
above a value only falls as the value rises - rounded sums too, as adding in a fixed order is monotone. So the value is
found digit by digit: floats are mapped to integers of the same order, and each launch adds up for 8 candidates of the
next 3 bits; 11 launches find it to the last bit, one more what is above it and at it. Ties are counted off in the
vocabulary's order.
Rejected: sorting or `topk`, which need a second way for rows whose mass lies wider, and a look at the host to see
which; 16 candidates a launch (8 launches): more comparisons than loads. One program a row, which asked all its
questions without another launch, took an H100 2.8 ms for 64 rows of 128,256 with top-p and 2.6 with top-k (0.04 greedy,
0.08 by temperature), half a step of an 8B model. Of these kernels greedy takes 0.025 there and temperature 0.031; top-p
took at most 1.1 and top-k at most 1.5, which may have been the host's time to launch them: in a step, which is a CUDA
graph, they have not been measured yet.

Exactness: equal to the reference in fp64 except where the random number, or top-p, is within 1e-5 of where one token
ends and the next begins, in parts of the whole: fp32 sums of 2048 values in trees, and exp2 to 2 units of the last
place, are together below that. There a neighbour in the order of sums may be taken.

A row without any finite logit gets token 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, await_previous, cdiv

_PART: Final = 2048
_NUM_WARPS: Final = 8
# With fewer, 8 sums of each of a part's logits do not fit into the registers.
_NUM_WARPS_OF_DIGITS: Final = 16
# Three bits a launch, from the top; the last one looks at a bit twice.
_SHIFTS: Final = (29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0)
# What a value is looked for for, in this order.
_TOP_K, _TOP_P, _TOKEN = (tl.constexpr(number) for number in range(3))
_LOWEST: Final = tl.constexpr(-2147483648)
_HIGHEST: Final = tl.constexpr(2147483647)
_LOG2_E: Final = tl.constexpr(math.log2(math.e))
# Of the random number.
_STEP: Final = tl.constexpr(0x9E3779B97F4A7C15)
_FACTOR_1: Final = tl.constexpr(0xBF58476D1CE4E5B9)
_FACTOR_2: Final = tl.constexpr(0x94D049BB133111EB)
_UNIT: Final = tl.constexpr(2.0**-53)
# Vocabularies of Llama 3 and Qwen2.5.
_SHIPPED: Final = (128_256, 151_936)


@triton.jit
def _load(logits, stride, row, part, V: tl.constexpr, PART: tl.constexpr):
    """Give columns of a part and their logits: -inf where not finite, one zero instead of two."""
    column = part * PART + tl.arange(0, PART)
    z = tl.load(logits + row * stride + column, mask=column < V, other=float("-inf"))
    z = tl.where(tl.abs(z) < float("inf"), z, float("-inf"))
    return column, tl.where(z == 0, 0.0, z)


@triton.jit
def _of_parts(values, row, other, P: tl.constexpr, BLOCK_P: tl.constexpr):
    """Give what the parts of a row found."""
    part = tl.arange(0, BLOCK_P)
    return tl.load(values + row * P + part, mask=part < P, other=other)


@triton.jit
def _key(z):
    """Map fp32 to int32 in the same order."""
    bits = z.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _weight_of(key, highest, scale):
    """Give the weight of the value that was mapped to a key."""
    z = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.exp2((z - highest) * scale)


@triton.jit
def _find_best(logits, stride, best, place, V: tl.constexpr, PART: tl.constexpr, P: tl.constexpr):
    """Find the largest logit of each part, and the first place it is at."""
    await_previous()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column, z = _load(logits, stride, row, part, V, PART)
    highest = tl.max(z, 0)
    tl.store(best + row * P + part, highest)
    tl.store(place + row * P + part, tl.min(tl.where(z == highest, column, V), 0))


@triton.jit
def _add_up(
    logits,
    stride,
    best,
    highest,
    plain,
    mass,
    lowest,
    scale,
    IS_GREEDY: tl.constexpr,
    V: tl.constexpr,
    PART: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Add up the weights of each part, without temperature and with it, and find its smallest key with a weight."""
    await_previous()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    largest = tl.max(_of_parts(best, row, float("-inf"), P, BLOCK_P), 0)
    largest = tl.maximum(largest, -3.4e38)
    if part == 0:
        tl.store(highest + row, largest)
    _, z = _load(logits, stride, row, part, V, PART)
    at = row * P + part
    tl.store(plain + at, tl.sum(tl.exp2((z - largest) * _LOG2_E), 0))
    if not IS_GREEDY:
        weight = tl.exp2((z - largest) * scale)
        tl.store(mass + at, tl.sum(weight, 0))
        tl.store(lowest + at, tl.min(tl.where(weight > 0, _key(z), _HIGHEST), 0))


@triton.jit
def _uniform(seed, position, row):
    """Give the random number of a row."""
    place = tl.load(position + row).to(tl.uint64) + 1
    x = tl.load(seed + row).to(tl.uint64) + place * _STEP
    x = (x ^ (x >> 30)) * _FACTOR_1
    x = (x ^ (x >> 27)) * _FACTOR_2
    return ((x ^ (x >> 31)) >> 11).to(tl.float64) * _UNIT


@triton.jit
def _goal(stage: tl.constexpr, left, number, top_p, top_k):
    """Give the sum that the value looked for passes."""
    if stage == _TOP_K:
        return top_k.to(tl.float64) - 0.5
    elif stage == _TOP_P:
        return top_p * left
    else:
        return number * left


@triton.jit(do_not_specialize=["top_k"])
def _begin(
    highest,
    mass,
    lowest,
    seed,
    position,
    goal,
    last,
    num_last,
    top_p,
    top_k,
    NEXT: tl.constexpr,
    V: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Set the first goal, and what is left: all that has a weight."""
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    left = tl.sum(_of_parts(mass, row, 0.0, P, BLOCK_P).to(tl.float64), 0)
    smallest = tl.min(_of_parts(lowest, row, _HIGHEST, P, BLOCK_P), 0)
    # Of a row without any, what stands for the largest.
    tl.store(last + row, tl.minimum(smallest, _key(tl.load(highest + row))))
    tl.store(num_last + row, V)  # how often it is left, at most
    tl.store(goal + row, _goal(NEXT, left, _uniform(seed, position, row), top_p, top_k))


@triton.jit
def _found(
    keys, sums, goal, row, shift, AT_LEAST: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Give the largest of 8 candidates at or above which the sum passes the goal."""
    part, candidate = tl.arange(0, BLOCK_P)[:, None], tl.arange(0, 8)[None, :]
    each = tl.load(sums + (row * P + part) * 8 + candidate, mask=part < P, other=0.0)
    total, wanted = tl.sum(each.to(tl.float64), 0), tl.load(goal + row)
    passes = total >= wanted if AT_LEAST else total > wanted
    digit = tl.maximum(tl.sum(passes.to(tl.int32), 0) - 1, 0)
    return tl.load(keys + row) + (digit << shift)


@triton.jit(do_not_specialize=["shift", "shift_before"])
def _add_up_above(
    logits,
    stride,
    highest,
    goal,
    keys_before,
    sums_before,
    keys,
    sums,
    scale,
    shift_before,
    shift,
    STAGE: tl.constexpr,
    IS_FIRST: tl.constexpr,
    V: tl.constexpr,
    PART: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Add up, a part each, the weights (or ones) at or above 8 candidates for the next three bits of a key."""
    await_previous()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    key = tl.full([], _LOWEST, tl.int32)
    if not IS_FIRST:
        key = _found(keys_before, sums_before, goal, row, shift_before, STAGE == _TOP_P, P, BLOCK_P)
    if part == 0:
        tl.store(keys + row, key)
    _, z = _load(logits, stride, row, part, V, PART)
    weight = tl.exp2((z - tl.load(highest + row)) * scale)
    if STAGE == _TOP_K:
        weight = tl.where(z > float("-inf"), 1.0, 0.0)
    candidate = tl.arange(0, 8)
    is_over = _key(z)[:, None] >= (key + (candidate << shift))[None, :]
    total = tl.sum(tl.where(is_over, weight[:, None], 0.0), 0)
    tl.store(sums + (row * P + part) * 8 + candidate, total)


@triton.jit(do_not_specialize=["shift"])
def _look_at(
    logits,
    stride,
    highest,
    goal,
    last,
    keys_before,
    sums_before,
    keys,
    above,
    num_above,
    ties,
    scale,
    shift,
    STAGE: tl.constexpr,
    V: tl.constexpr,
    PART: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Find, a part each, the weight and the number of what is above the key found, and the number of what is at it."""
    await_previous()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    key = _found(keys_before, sums_before, goal, row, shift, STAGE == _TOP_P, P, BLOCK_P)
    key = tl.maximum(key, tl.load(last + row))
    if part == 0:
        tl.store(keys + row, key)
    _, z = _load(logits, stride, row, part, V, PART)
    is_above = _key(z) > key
    weight = tl.exp2((z - tl.load(highest + row)) * scale)
    at = row * P + part
    tl.store(above + at, tl.sum(tl.where(is_above, weight, 0.0), 0))
    tl.store(num_above + at, tl.sum(is_above.to(tl.int32), 0))
    tl.store(ties + at, tl.sum((_key(z) == key).to(tl.int32), 0))


@triton.jit
def _at_key(
    highest, keys, above, ties, last, num_last, row, scale, P: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Give the key found, its weight, the weight of what is above it, and how many at it are left."""
    key = tl.load(keys + row)
    weight = _weight_of(key, tl.load(highest + row), scale)
    weight_above = tl.sum(_of_parts(above, row, 0.0, P, BLOCK_P).to(tl.float64), 0)
    num_ties = tl.sum(_of_parts(ties, row, 0, P, BLOCK_P), 0)
    is_last = key == tl.load(last + row)
    most = tl.where(is_last, tl.minimum(tl.load(num_last + row), num_ties), num_ties)
    return key, weight, weight_above, most


@triton.jit(do_not_specialize=["top_k"])
def _go_on(
    highest,
    seed,
    position,
    keys,
    above,
    num_above,
    ties,
    goal,
    last,
    num_last,
    scale,
    top_p,
    top_k,
    STAGE: tl.constexpr,
    NEXT: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Say what top-k or top-p leaves, and set the next goal."""
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    key, weight, weight_above, most = _at_key(
        highest, keys, above, ties, last, num_last, row, scale, P, BLOCK_P
    )
    if STAGE == _TOP_K:
        count = top_k - tl.sum(_of_parts(num_above, row, 0, P, BLOCK_P), 0)
        count = tl.minimum(count, most)
    else:
        needed = (tl.load(goal + row) - weight_above) / weight
        count = tl.minimum(tl.maximum(tl.ceil(needed.to(tl.float32)).to(tl.int32), 1), most)
    left = weight_above + count * weight
    tl.store(last + row, key)
    tl.store(num_last + row, count)
    tl.store(goal + row, _goal(NEXT, left, _uniform(seed, position, row), top_p, top_k))


@triton.jit
def _find_tie(
    logits,
    stride,
    highest,
    keys,
    above,
    ties,
    goal,
    last,
    num_last,
    row,
    scale,
    V: tl.constexpr,
    PART: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Give the token: of those at the key found, the one at which the sum passes the goal."""
    key, weight, weight_above, most = _at_key(
        highest, keys, above, ties, last, num_last, row, scale, P, BLOCK_P
    )
    number = tl.floor(((tl.load(goal + row) - weight_above) / weight).to(tl.float32))
    number = tl.minimum(tl.maximum(number.to(tl.int32), 0), most - 1)
    # ---- the part it lies in, and its place there ----
    parts, each = tl.arange(0, BLOCK_P), _of_parts(ties, row, 0, P, BLOCK_P)
    part = tl.min(tl.where(tl.cumsum(each, 0) > number, parts, P - 1), 0)
    number -= tl.sum(tl.where(parts < part, each, 0), 0)
    column, z = _load(logits, stride, row, part, V, PART)
    is_tie = (_key(z) == key).to(tl.int32)
    is_it = (tl.cumsum(is_tie, 0) == number + 1) & (is_tie == 1)
    return tl.sum(tl.where(is_it, column, 0), 0)


@triton.jit
def _find_in_order(
    logits,
    stride,
    highest,
    mass,
    number,
    row,
    scale,
    V: tl.constexpr,
    PART: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Give the first column up to which the weights sum to more than a share of all."""
    parts = tl.arange(0, BLOCK_P)
    each = _of_parts(mass, row, 0.0, P, BLOCK_P).to(tl.float64)
    goal = number * tl.sum(each, 0)
    part = tl.min(tl.where(tl.cumsum(each, 0) > goal, parts, P), 0)
    # Rounding can put the share at the whole, which no sum exceeds: then the last column that adds to it.
    part = tl.where(part < P, part, tl.max(tl.where(each > 0, parts, 0), 0))
    before = tl.sum(tl.where(parts < part, each, 0.0), 0)
    column, z = _load(logits, stride, row, part, V, PART)
    weight = tl.exp2((z - tl.load(highest + row)) * scale)
    sums = before + tl.cumsum(weight, 0).to(tl.float64)
    over = tl.min(tl.where(sums > goal, column, V), 0)
    return tl.minimum(over, tl.max(tl.where(weight > 0, column, 0), 0))


@triton.jit
def _choose(
    logits,
    stride,
    seed,
    position,
    best,
    place,
    highest,
    plain,
    mass,
    keys,
    above,
    ties,
    goal,
    last,
    num_last,
    tokens,
    logprobs,
    scale,
    IS_GREEDY: tl.constexpr,
    IS_CUT: tl.constexpr,
    V: tl.constexpr,
    PART: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the token and its log-prob."""
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    if IS_GREEDY:
        each = _of_parts(best, row, float("-inf"), P, BLOCK_P)
        places = _of_parts(place, row, V, P, BLOCK_P)
        token = tl.min(tl.where(each == tl.max(each, 0), places, V), 0)
    elif IS_CUT:
        token = _find_tie(
            logits,
            stride,
            highest,
            keys,
            above,
            ties,
            goal,
            last,
            num_last,
            row,
            scale,
            V,
            PART,
            P,
            BLOCK_P,
        )
    else:
        number = _uniform(seed, position, row)
        token = _find_in_order(
            logits, stride, highest, mass, number, row, scale, V, PART, P, BLOCK_P
        )
    total = tl.sum(_of_parts(plain, row, 0.0, P, BLOCK_P).to(tl.float64), 0)
    total = tl.maximum(total, 1.0)  # 1 is what the largest adds to it, if there is one
    z = tl.load(logits + row * stride + token).to(tl.float64)
    logprob = z - tl.load(highest + row).to(tl.float64) - tl.log(total)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, logprob)


def sample(
    logits_RV: torch.Tensor,
    seed_R: torch.Tensor,
    position_R: torch.Tensor,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token a row.

    Args:
        logits_RV: fp32 [R, V], rows contiguous, any row stride; what is not finite is never chosen.
        seed_R: int64[R], any; seeds of different texts should be no near numbers but hashes.
        position_R: int64[R], which number of a seed's.
        temperature: Divides the logits; 0: the largest is chosen.
        top_p: Only the most probable tokens that together have this probability; 1: all.
        top_k: Only so many of the largest, before `top_p`; 0: all.

    Returns:
        int64[R] tokens, float64[R] logprobs in nats.
    """
    num_rows, vocab_size = logits_RV.shape
    assert logits_RV.dtype == torch.float32
    assert logits_RV.stride(1) == 1
    assert seed_R.dtype == position_R.dtype == torch.int64
    given: dict[str, Any] = {
        "logits": logits_RV,
        "stride": logits_RV.stride(0),
        "seed": seed_R,
        "position": position_R,
        "tokens": torch.empty_like(seed_R),
        "logprobs": torch.empty(num_rows, dtype=torch.float64, device=logits_RV.device),
        "scale": math.log2(math.e) / temperature if temperature else 1.0,
        "top_p": top_p,
        "top_k": min(top_k, vocab_size),
        **_room(num_rows, cdiv(vocab_size, _PART), logits_RV.device),
    }
    parts, rows = (num_rows, cdiv(vocab_size, _PART)), (num_rows,)
    _run(_find_best, parts, given, vocab_size)
    is_greedy = temperature == 0
    _run(_add_up, parts, given, vocab_size, IS_GREEDY=is_greedy)
    stages = [_TOP_K] * (top_k > 0) + [_TOP_P] * (top_p < 1)
    is_cut = bool(stages) and not is_greedy
    if is_cut:
        _run(_begin, rows, given, vocab_size, NEXT=stages[0])
        for stage, following in zip([*stages, _TOKEN], [*stages[1:], _TOKEN, None], strict=True):
            _search(given, parts, vocab_size, stage)
            if following is not None:
                _run(_go_on, rows, given, vocab_size, STAGE=stage, NEXT=following)
    _run(_choose, rows, given, vocab_size, IS_GREEDY=is_greedy, IS_CUT=is_cut)
    return given["tokens"], given["logprobs"]


def _search(
    given: Mapping[str, Any], parts: tuple[int, int], vocab_size: int, stage: tl.constexpr
) -> None:
    """Find the value at which the sum passes the goal, digit by digit, and look at it."""
    pairs = list(zip(given["two_keys"], given["two_sums"], strict=True))
    for digit, shift in enumerate(_SHIFTS):
        (keys_before, sums_before), (keys, sums) = pairs[digit % 2 - 1], pairs[digit % 2]
        of_digit = {
            "keys_before": keys_before,
            "sums_before": sums_before,
            "keys": keys,
            "sums": sums,
            "shift_before": _SHIFTS[digit - 1],
            "shift": shift,
        }
        constants = {"STAGE": stage, "IS_FIRST": digit == 0}
        _run(_add_up_above, parts, {**given, **of_digit}, vocab_size, **constants)
    keys_before, sums_before = pairs[digit % 2]
    found = {"keys_before": keys_before, "sums_before": sums_before, "shift": _SHIFTS[-1]}
    _run(_look_at, parts, {**given, **found}, vocab_size, STAGE=stage)


def _room(num_rows: int, num_parts: int, device: torch.device) -> dict[str, Any]:
    """Give memory for what kernels leave to each other."""
    parts = (num_rows, num_parts)
    fp32 = torch.empty((4, *parts), dtype=torch.float32, device=device)
    int32 = torch.empty((4, *parts), dtype=torch.int32, device=device)
    of_rows = torch.empty((5, num_rows), dtype=torch.int32, device=device)
    return {
        **dict(zip(("best", "plain", "mass", "above"), fp32, strict=True)),
        **dict(zip(("place", "lowest", "num_above", "ties"), int32, strict=True)),
        **dict(zip(("last", "num_last", "keys"), of_rows[:3], strict=True)),
        "two_keys": of_rows[3:],
        "two_sums": torch.empty((2, *parts, 8), dtype=torch.float32, device=device),
        "highest": torch.empty(num_rows, dtype=torch.float32, device=device),
        "goal": torch.empty(num_rows, dtype=torch.float64, device=device),
    }


def _run(
    kernel: Any,  # noqa: ANN401
    grid: tuple[int, ...],
    given: Mapping[str, Any],
    vocab_size: int,
    **constants: Any,  # noqa: ANN401
) -> None:
    """Launch a kernel with what it takes of what is given."""
    launch = _launch(kernel, vocab_size, **constants)
    names = [name for name in kernel.arg_names if name not in launch.constants]
    kernel[grid](**{name: given[name] for name in names}, **launch.keywords)


@cache
def _launch(kernel: Any, vocab_size: int, **constants: Any) -> Launch:  # noqa: ANN401
    num_parts = cdiv(vocab_size, _PART)
    sizes = {
        "V": vocab_size,
        "PART": _PART,
        "P": num_parts,
        "BLOCK_P": triton.next_power_of_2(num_parts),
    }
    taken = {name: value for name, value in sizes.items() if name in kernel.arg_names}
    num_warps = _NUM_WARPS_OF_DIGITS if kernel is _add_up_above else _NUM_WARPS
    return Launch({**taken, **constants}, num_warps=num_warps, is_early=True)


# Of what is no constant, by name.
_TYPES: Final = {
    **dict.fromkeys(("logits", "best", "plain", "mass", "above", "highest"), torch.float32),
    **dict.fromkeys(("sums", "sums_before"), torch.float32),
    **dict.fromkeys(("place", "lowest", "num_above", "ties", "last", "num_last"), torch.int32),
    **dict.fromkeys(("keys", "keys_before"), torch.int32),
    **dict.fromkeys(("goal", "logprobs"), torch.float64),
    **dict.fromkeys(("seed", "position", "tokens"), torch.int64),
}
_NUMBERS: Final = {"scale": "fp32", "top_p": "fp32"} | dict.fromkeys(
    ("stride", "top_k", "shift", "shift_before"), "i32"
)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    kinds = {name: POINTER[dtype] for name, dtype in _TYPES.items()} | _NUMBERS
    for vocab_size in _SHIPPED:
        for name, kernel, constants in _kernels():
            launch = _launch(kernel, vocab_size, **constants)
            names = [one for one in kernel.arg_names if one not in launch.constants]
            yield Variant(
                name=f"sample {name} {vocab_size}",
                kernel=kernel,
                arguments={one: kinds[one] for one in names},
                launch=launch,
                divisible=frozenset({"stride"}),
            )


def _kernels() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield all kernels, in all ways: a name, the kernel, constants."""
    yield "find best", _find_best, {}
    for name, is_greedy in (("add up", False), ("add up greedy", True)):
        yield name, _add_up, {"IS_GREEDY": is_greedy}
    for name, following in (("top-k", _TOP_K), ("top-p", _TOP_P)):
        yield f"begin with {name}", _begin, {"NEXT": following}
    for name, stage in (("top-k", _TOP_K), ("top-p", _TOP_P), ("token", _TOKEN)):
        for is_first in (True, False):
            constants = {"STAGE": stage, "IS_FIRST": is_first}
            yield f"{name} digit{' one' * is_first}", _add_up_above, constants
        yield f"{name} look at", _look_at, {"STAGE": stage}
    for stage, following in ((_TOP_K, _TOP_P), (_TOP_K, _TOKEN), (_TOP_P, _TOKEN)):
        name = f"go on {stage.value} {following.value}"
        yield name, _go_on, {"STAGE": stage, "NEXT": following}
    for name, is_greedy, is_cut in (
        ("greedy", True, False),
        ("temperature", False, False),
        ("cut", False, True),
    ):
        yield f"choose {name}", _choose, {"IS_GREEDY": is_greedy, "IS_CUT": is_cut}
