# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What `linear_logprob_triton` and `linear_logprob_tiles_triton` share: from logits to the facts of a target.

Equations, for a row with logits z_j and target t. Each part of the vocabulary is left as four values of its tokens
other than t:

    m = max z_j    s = sum exp(z_j - m)    w = sum exp(z_j - m) (z_j - m)    n = #{j : z_j > z_t}

Parts are merged in a fixed order. With A = m + log s of the whole and x = A - z_t, p = 1 / (1 + e^x) and q = 1 - p:

    logprob = log p = min(-x, 0) - log1p(e^-|x|)        entropy = -p log p + q (log s - w / s - log q)
    rank = min(100, 1 + n)                              margin = z_t - m

Nothing cancels: x is all that a rounded logit can spoil, so the log-prob of a target that is nearly certain has the
relative error of e^x, and each term of the entropy is positive.
Dimensions: R rows, S parts of the vocabulary. Dtypes: parts in fp32 (n is exact below 2^24), merged in fp64.
Memory traffic: 16 bytes a row and part.

Facts of a row whose target's logit is not finite, or with any logit NaN or +inf, are NaN, and its rank says nothing. A
logit of -inf is a token of probability 0. Where there is no other token, m is half the smallest float32, as in the
reference.

One program merges `_MERGE_ROWS` rows, each on its own; the formulas are there too and not in torch, whose twenty small
launches would cost more than the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from fam_engine.kernels.launching import POINTER, Launch, Variant, cdiv
from fam_engine.kernels.linear_logprob import MAX_RANK, LinearLogprobs

# The largest logit of no logits. Finite, so that differences with it are never NaN.
LOWEST: Final = tl.constexpr(torch.finfo(torch.float32).min / 2)
# exp of this is 0. Distances from the maximum are cut there where 0 times infinity would be NaN.
_FARTHEST = tl.constexpr(-1000.0)
_MAX_RANK = tl.constexpr(MAX_RANK)
_MERGE_ROWS = 64
# Parts a row of the shipped kernels, at most.
_SHIPPED_PARTS = (32, 19)


@triton.jit
def add_logits(z, is_other, target_logit, m, s, w, n) -> tuple[tl.tensor, ...]:
    """Give the four values a row [R] with a tile of logits [R, C] taken up; `is_other` says which count."""
    z = tl.where(is_other, z, float("-inf"))
    top = tl.maximum(m, tl.max(z, 1))
    distance = z - top[:, None]
    p = tl.exp(distance)
    shift = tl.maximum(m - top, _FARTHEST)
    shrink = tl.exp(shift)
    w = (w + s * shift) * shrink + tl.sum(p * tl.maximum(distance, _FARTHEST), 1)
    s = s * shrink + tl.sum(p, 1)
    n += tl.sum(tl.where(z > target_logit[:, None], 1.0, 0.0), 1)
    return top, s, w, n


@triton.jit
def store_part(partials, part, row, inside, m, s, w, n, num_rows, NUM_PARTS: tl.constexpr) -> None:
    """Store the four values of a part [R] in partials [4, S, R]."""
    step = tl.cast(num_rows, tl.int64) * NUM_PARTS
    at = partials + tl.cast(part, tl.int64) * num_rows + row
    tl.store(at, m, mask=inside)
    tl.store(at + step, s, mask=inside)
    tl.store(at + 2 * step, w, mask=inside)
    tl.store(at + 3 * step, n, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _merge(
    partials,
    target_logits,
    facts,
    ranks,
    num_rows,
    NUM_PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < num_rows
    own = tl.load(target_logits + row, mask=inside, other=0.0).to(tl.float64)
    own = tl.where(tl.abs(own) < float("inf"), own, float("nan"))
    step = tl.cast(num_rows, tl.int64) * NUM_PARTS
    m = tl.full([BLOCK_R], LOWEST, tl.float64)
    s = tl.zeros([BLOCK_R], tl.float64)
    w = tl.zeros([BLOCK_R], tl.float64)
    n = tl.zeros([BLOCK_R], tl.float64)
    for part in range(NUM_PARTS):
        at = partials + tl.cast(part, tl.int64) * num_rows + row
        part_m = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        part_s = tl.load(at + step, mask=inside, other=0.0).to(tl.float64)
        part_w = tl.load(at + 2 * step, mask=inside, other=0.0).to(tl.float64)
        n += tl.load(at + 3 * step, mask=inside, other=0.0).to(tl.float64)
        top = tl.maximum(m, part_m)
        shift = m - top
        part_shift = part_m - top
        shrink = tl.exp(shift)
        part_shrink = tl.exp(part_shift)
        w = (w + s * shift) * shrink + (part_w + part_s * part_shift) * part_shrink
        s = s * shrink + part_s * part_shrink
        m = top

    # s is at least 1 but where no other token has weight, which changes nothing then; NaN stays.
    s = tl.where(s < 1, 1.0, s)
    x = m + tl.log(s) - own
    soft = _log1p(tl.exp(-tl.abs(x)))
    logprob = tl.minimum(-x, 0.0) - soft
    log_others = tl.minimum(x, 0.0) - soft
    others_entropy = tl.log(s) - w / s
    entropy = tl.exp(log_others) * (others_entropy - log_others) - tl.exp(logprob) * logprob
    margin = tl.where(x == x, own - m, float("nan"))
    tl.store(facts + row, logprob, mask=inside)
    tl.store(facts + num_rows + row, entropy, mask=inside)
    tl.store(facts + 2 * tl.cast(num_rows, tl.int64) + row, margin, mask=inside)
    tl.store(ranks + row, tl.minimum(1 + n, _MAX_RANK).to(tl.int32), mask=inside)


@triton.jit
def _log1p(y):
    """Give log(1 + y) for y in [0, 1]; the factor undoes the rounding of 1 + y (Goldberg 1991, theorem 4)."""
    u = 1 + y
    return tl.where(u == 1, y, tl.log(u) * (y / tl.where(u == 1, 1.0, u - 1)))


@dataclass(frozen=True)
class Parts:
    """What the parts of a vocabulary say about each row.

    Attributes:
        values_4SR: float32[4, S, R], the values m, s, w and n of the module's equations.
        target_logit_R: float32[R].
    """

    values_4SR: torch.Tensor
    target_logit_R: torch.Tensor

    @classmethod
    def empty(cls, num_parts: int, num_rows: int, *, device: torch.device) -> Parts:
        """Give memory for them."""
        return cls(
            torch.empty((4, num_parts, num_rows), dtype=torch.float32, device=device),
            torch.empty(num_rows, dtype=torch.float32, device=device),
        )


def merge(parts: Parts) -> LinearLogprobs:
    """Put parts and targets together, in fp64 and in the order of the parts."""
    _, num_parts, num_rows = parts.values_4SR.shape
    facts = parts.values_4SR.new_empty((3, num_rows), dtype=torch.float64)
    ranks = parts.values_4SR.new_empty(num_rows, dtype=torch.int32)
    grid = (cdiv(num_rows, _MERGE_ROWS),)
    arguments = (parts.values_4SR, parts.target_logit_R, facts, ranks, num_rows)
    _merge[grid](*arguments, **_launch(num_parts).keywords)
    return LinearLogprobs(logprob_R=facts[0], rank_R=ranks, entropy_R=facts[1], margin_R=facts[2])


def _launch(num_parts: int) -> Launch:
    return Launch({"NUM_PARTS": num_parts, "BLOCK_R": _MERGE_ROWS}, num_warps=2)


def variants(capability: int) -> Iterator[Variant]:
    """Yield what is shipped for a capability."""
    del capability  # the same for all
    arguments: dict[str, Any] = {
        "partials": POINTER[torch.float32],
        "target_logits": POINTER[torch.float32],
        "facts": POINTER[torch.float64],
        "ranks": POINTER[torch.int32],
        "num_rows": "i32",
    }
    for num_parts in _SHIPPED_PARTS:
        yield Variant(
            name=f"linear_logprob merge {num_parts}",
            kernel=_merge,
            arguments=arguments,
            launch=_launch(num_parts),
        )
