# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The choice of a token a row from its logits and one random number, as a Triton kernel.

Equations and dimensions as in `sample.py`, the reference. Dtypes: logits fp32; weights and their sums
fp32, the share of the random number fp64; token ids int64, logprobs fp64 of fp32 sums.
Memory traffic, in logits of a row: 2 V greedy, 3 V by temperature alone, 27 V with top-k or top-p,
39 V with both (a row of 128,256 is 513 KB; 64 of them fit in the L2 cache of an H100).

Nothing is sorted. What top-k keeps, what top-p keeps and the token itself are each the same question:
going down from the largest logit, at which value does a sum (of ones, of weights, of weights) pass a
goal? The sum of all weights at or above a value only falls as the value rises - rounded sums too, as
adding in a fixed order is monotone. So the value is found digit by digit: floats are mapped to integers
of the same order, and each pass over the row adds up for 8 candidates of the next 3 bits; 11 passes
find it to the last bit. Ties are counted off in the vocabulary's order.
Rejected: sorting or `topk`, which need a second way for rows whose mass lies wider, and a look at the
host to see which; 16 candidates a pass (7 passes): more comparisons than loads.

Exactness: equal to the reference in fp64 except where the random number, or top-p, is within 1e-5 of
where one token ends and the next begins, in parts of the whole: fp32 sums of V values in chains of
V / 2048 and trees of 2048, and exp2 to 2 units of the last place, are together below that. There a
neighbour in the order of sums may be taken.

One program a row, whose bits depend on that row alone. A row without any finite logit gets token 0.
On an H100 64 rows of 128,256 normally distributed logits take 0.04 ms greedy, 0.08 by temperature, 2.8 with top-p and
2.6 with top-k: 0.6 times a step of an 8B model with as many texts. One program a row leaves half of the card idle, and
every pass looks at the whole row; passes over what is left of it would be next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant

# With 16 warps the same block spills as Triton 3.6 compiles it, and one of 1024 does with 3.9.
_BLOCK = 2048
_NUM_WARPS = 8
# Vocabularies of Llama 3 and Qwen2.5.
_SHIPPED = (128_256, 151_936)


@triton.jit
def _load(logits, begin, V: tl.constexpr, BLOCK: tl.constexpr):
    """Give columns and their logits: -inf where not finite, one zero instead of two."""
    column = begin + tl.arange(0, BLOCK)
    z = tl.load(logits + column, mask=column < V, other=float("-inf"))
    z = tl.where(tl.abs(z) < float("inf"), z, float("-inf"))
    return column, tl.where(z == 0, 0.0, z)


@triton.jit
def _key(z):
    """Map fp32 to int32 in the same order."""
    bits = z.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    """Undo `_key`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _find(
    logits,
    highest,
    scale,
    goal,
    COUNTS: tl.constexpr,
    AT_LEAST: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Give the largest key at or above which the weights (or ones) sum to more than the goal."""
    found = tl.full([], -2147483648, tl.int32)
    for digit in range(11):
        shift = tl.maximum(29 - 3 * digit, 0)
        candidate = found + (tl.arange(0, 8) << shift)
        sums = tl.zeros([BLOCK, 8], tl.float32)
        for begin in tl.range(0, V, BLOCK, num_stages=4):
            _, z = _load(logits, begin, V, BLOCK)
            weight = tl.exp2((z - highest) * scale)
            if COUNTS:
                weight = tl.where(z > float("-inf"), 1.0, 0.0)
            is_over = _key(z)[:, None] >= candidate[None, :]
            sums += tl.where(is_over, weight[:, None], 0.0)
        total = tl.sum(sums, 0).to(tl.float64)
        passes = total >= goal if AT_LEAST else total > goal
        found += tl.maximum(tl.sum(passes.to(tl.int32), 0) - 1, 0) << shift
    return found


@triton.jit
def _at(logits, highest, scale, key, V: tl.constexpr, BLOCK: tl.constexpr):
    """Give the weight and the number of what is above a key, and the number of what is at it."""
    weight = tl.zeros([BLOCK], tl.float32)
    above = tl.zeros([BLOCK], tl.int32)
    ties = tl.zeros([BLOCK], tl.int32)
    for begin in tl.range(0, V, BLOCK, num_stages=4):
        _, z = _load(logits, begin, V, BLOCK)
        is_above = _key(z) > key
        weight += tl.where(is_above, tl.exp2((z - highest) * scale), 0.0)
        above += is_above.to(tl.int32)
        ties += (_key(z) == key).to(tl.int32)
    return tl.sum(weight, 0).to(tl.float64), tl.sum(above, 0), tl.sum(ties, 0)


@triton.jit
def _nth_at(logits, key, number, V: tl.constexpr, BLOCK: tl.constexpr):
    """Give the column of the tie with this number, from 0, at a key."""
    seen = tl.zeros([], tl.int32)
    token = tl.zeros([], tl.int32)
    for begin in tl.range(0, V, BLOCK, num_stages=4):
        column, z = _load(logits, begin, V, BLOCK)
        is_tie = (_key(z) == key).to(tl.int32)
        here = tl.sum(is_tie, 0)
        if (seen <= number) & (number < seen + here):
            is_it = (tl.cumsum(is_tie, 0) + seen == number + 1) & (is_tie == 1)
            token = tl.sum(tl.where(is_it, column, 0), 0)
        seen += here
    return token


@triton.jit
def _first_over(logits, highest, scale, goal, V: tl.constexpr, BLOCK: tl.constexpr):
    """Give the first column up to which the weights sum to more than the goal."""
    sum_before = tl.zeros([], tl.float32)
    token = tl.full([], -1, tl.int32)
    last = tl.zeros([BLOCK], tl.int32)
    for begin in tl.range(0, V, BLOCK, num_stages=4):
        column, z = _load(logits, begin, V, BLOCK)
        weight = tl.exp2((z - highest) * scale)
        last = tl.where(weight > 0, column, last)
        sum_after = sum_before + tl.sum(weight, 0)
        if (token < 0) & (sum_after.to(tl.float64) > goal):
            # The running sum rounds otherwise than the sum: it may stay below.
            sums = (sum_before + tl.cumsum(weight, 0)).to(tl.float64)
            over = tl.min(tl.where(sums > goal, column, V), 0)
            token = tl.minimum(over, tl.max(last, 0))
        sum_before = sum_after
    return tl.where(token < 0, tl.max(last, 0), token)


@triton.jit(do_not_specialize=["top_k"])
def _sample(
    logits,
    uniform,
    tokens,
    logprobs,
    logits_stride,
    scale,
    top_p,
    top_k,
    IS_GREEDY: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    HAS_TOP_K: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride

    # ---- the largest logit, and the first place it is at ----
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK], tl.int32)
    for begin in tl.range(0, V, BLOCK, num_stages=4):
        column, z = _load(logits, begin, V, BLOCK)
        place = tl.where(z > best, column, place)
        best = tl.maximum(best, z)
    highest = tl.max(best, 0)
    token = tl.min(tl.where(best == highest, place, V), 0)
    highest = tl.maximum(highest, -3.4e38)

    # ---- sums: of the model's own distribution, and with temperature ----
    plain = tl.zeros([BLOCK], tl.float32)
    mass = tl.zeros([], tl.float32)
    lowest = tl.full([BLOCK], 2147483647, tl.int32)
    for begin in tl.range(0, V, BLOCK, num_stages=4):
        _, z = _load(logits, begin, V, BLOCK)
        plain += tl.exp2((z - highest) * 1.4426950408889634)
        if not IS_GREEDY:
            weight = tl.exp2((z - highest) * scale)
            mass += tl.sum(weight, 0)
            lowest = tl.minimum(lowest, tl.where(weight > 0, _key(z), 2147483647))

    # ---- the token ----
    if not IS_GREEDY:
        left = mass.to(tl.float64)
        number = tl.load(uniform + row)
        if not HAS_TOP_K and not HAS_TOP_P:
            token = _first_over(logits, highest, scale, number * left, V, BLOCK)
        else:
            # The smallest value that is left; of a row without any, what stands for the largest.
            last = tl.minimum(tl.min(lowest, 0), _key(highest))
            num_last = tl.full([], V, tl.int32)  # how often it is left, at most
            if HAS_TOP_K:
                goal = top_k.to(tl.float64) - 0.5
                key = _find(logits, highest, scale, goal, True, False, V, BLOCK)
                last = tl.maximum(key, last)
                above, num_above, ties = _at(logits, highest, scale, last, V, BLOCK)
                num_last = tl.minimum(ties, top_k - num_above)
                left = above + num_last * tl.exp2((_value(last) - highest) * scale)
            if HAS_TOP_P:
                goal = top_p * left
                key = _find(logits, highest, scale, goal, False, True, V, BLOCK)
                key = tl.maximum(key, last)
                above, num_above, ties = _at(logits, highest, scale, key, V, BLOCK)
                weight = tl.exp2((_value(key) - highest) * scale)
                most = tl.where(key == last, tl.minimum(num_last, ties), ties)
                needed = tl.ceil(((goal - above) / weight).to(tl.float32)).to(tl.int32)
                num_last = tl.minimum(tl.maximum(needed, 1), most)
                left = above + num_last * weight
                last = key
            goal = number * left
            key = _find(logits, highest, scale, goal, False, False, V, BLOCK)
            key = tl.maximum(key, last)
            above, num_above, ties = _at(logits, highest, scale, key, V, BLOCK)
            weight = tl.exp2((_value(key) - highest) * scale)
            most = tl.where(key == last, tl.minimum(num_last, ties), ties)
            before = tl.floor(((goal - above) / weight).to(tl.float32)).to(tl.int32)
            before = tl.minimum(tl.maximum(before, 0), most - 1)
            token = _nth_at(logits, key, before, V, BLOCK)

    # ---- store ----
    total = tl.maximum(tl.sum(plain, 0), 1.0)  # 1 is what the largest adds to it, if there is one
    logprob = tl.load(logits + token) - highest - tl.log(total)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, logprob.to(tl.float64))


def sample(
    logits_RV: torch.Tensor,
    uniform_R: torch.Tensor,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token a row.

    Args:
        logits_RV: fp32 [R, V], rows contiguous, any row stride; what is not finite is never chosen.
        uniform_R: float64[R], in [0, 1).
        temperature: Divides the logits; 0: the largest is chosen.
        top_p: Only the most probable tokens that together have this probability; 1: all.
        top_k: Only so many of the largest, before `top_p`; 0: all.

    Returns:
        int64[R] tokens, float64[R] logprobs in nats.
    """
    num_rows, vocab_size = logits_RV.shape
    assert logits_RV.dtype == torch.float32
    assert logits_RV.stride(1) == 1
    assert uniform_R.dtype == torch.float64
    tokens_R = torch.empty(num_rows, dtype=torch.int64, device=logits_RV.device)
    logprobs_R = torch.empty_like(uniform_R)
    launch = _launch(vocab_size, is_greedy=temperature == 0, top_p=top_p < 1, top_k=top_k > 0)
    _sample[num_rows,](
        logits_RV,
        uniform_R,
        tokens_R,
        logprobs_R,
        logits_RV.stride(0),
        math.log2(math.e) / temperature if temperature else 1.0,
        top_p,
        min(top_k, vocab_size),
        **launch.keywords,
    )
    return tokens_R, logprobs_R


def _launch(vocab_size: int, *, is_greedy: bool, top_p: bool, top_k: bool) -> Launch:
    constants = {
        "IS_GREEDY": is_greedy,
        "HAS_TOP_P": top_p,
        "HAS_TOP_K": top_k,
        "V": vocab_size,
        "BLOCK": _BLOCK,
    }
    return Launch(constants, num_warps=_NUM_WARPS)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    ways = {
        "greedy": {"is_greedy": True, "top_p": False, "top_k": False},
        "temperature": {"is_greedy": False, "top_p": False, "top_k": False},
        "top-p": {"is_greedy": False, "top_p": True, "top_k": False},
        "top-k top-p": {"is_greedy": False, "top_p": True, "top_k": True},
    }
    arguments = {
        "logits": POINTER[torch.float32],
        "uniform": POINTER[torch.float64],
        "tokens": POINTER[torch.int64],
        "logprobs": POINTER[torch.float64],
        "logits_stride": "i32",
        "scale": "fp32",
        "top_p": "fp32",
        "top_k": "i32",
    }
    for vocab_size in _SHIPPED:
        for name, way in ways.items():
            yield Variant(
                name=f"sample {name} {vocab_size}",
                kernel=_sample,
                arguments=arguments,
                launch=_launch(vocab_size, **way),
                divisible=frozenset({"logits_stride"}),
            )
