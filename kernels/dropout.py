"""Dropout whose mask follows from a seed and the element's place: torch reference and CPU path.

Equation: out = x * keep / P(keep), with keep[t, k] = (word w of block b >= dropped), where

    dropped = round(rate * 2^16)      P(keep) = 1 - dropped / 2^16
    b = 1 + t * ceil(K / 16) + floor(k / 16)      w = k mod 16
    block b = philox4x64-10(counter = (b, *stream), key = (seed, 0)), 256 bits as 16 words, lowest first

Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Nothing is stored for the backward pass:
the gradient goes through the same function with the same seed. Counting starts at 1, as NumPy's generator does, which
is what makes the bits here.

Dimensions: T rows, K features. Each row starts a block, so that no place is found by a division by K.
Dtypes: bf16, fp16, fp32 or fp64, as in out; the product is made in fp32 (fp64 for fp64) and rounded once.
Memory traffic: on a GPU K values in, K out; here the bits too, 2 bytes a value.

Why 4x64 and not the 4x32 of `tl.rand`: NumPy has it in C, Triton has it too (`tl.philox` with 64-bit counters). One
core makes and compares a value's bits in 1.2 ns; torch's `bernoulli_` takes 5.0 ns, philox4x32 written in NumPy about
100 array operations for 4 values.
Why 16 bits a value and not 32: half of the time here and of the multiplications on a GPU. A rate is rounded to a
multiple of 2^-16; the scale is that of the rounded rate, so the expected value is exact.
Why a stream of three numbers and not a hash of all: which layer, matrix and source are counters of their own, so that
no two masks can share bits, and on a GPU only the seed changes from batch to batch.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

# Values that share a block of bits, and what 16 bits can tell apart.
BLOCK_VALUES: Final = 16
LEVELS: Final = 2**16


def dropout(
    x_TK: torch.Tensor,
    *,
    rate: float,
    seed: torch.Tensor,
    stream: tuple[int, int, int],
    out: torch.Tensor,
) -> None:
    """Leave values out and scale up the rest.

    Args:
        x_TK: [T, K], rows contiguous, any row stride; of a forward pass the input, of a backward pass the gradient.
        rate: Probability of leaving a value out, in [0, 1); rounded to a multiple of 2^-16.
        seed: int64[1] on the device of x, not negative; in memory, so that a CUDA graph can be replayed with another.
        stream: What else the mask follows from, such as layer, matrix and source; each below 2^31.
        out: [T, K] of the same dtype, rows contiguous, any row stride; may be x.
    """
    num_rows, width = x_TK.shape
    assert out.shape == x_TK.shape
    row_blocks = -(-width // BLOCK_VALUES)
    bits = np.random.Philox(key=[int(seed), 0], counter=[0, *stream])
    words = bits.random_raw(num_rows * row_blocks * (BLOCK_VALUES // 4))
    words_TK = words.astype("<u8", copy=False).view("<u2").reshape(num_rows, -1)[:, :width]
    keep_TK = torch.from_numpy(words_TK >= num_dropped(rate)).to(x_TK.device)
    torch.mul(x_TK, keep_TK, out=out)
    out.mul_(scale(rate))


def num_dropped(rate: float) -> int:
    """Give how many of the 2^16 words leave a value out."""
    assert 0 <= rate < 1
    return min(round(rate * LEVELS), LEVELS - 1)


def scale(rate: float) -> float:
    """Give what the kept values are multiplied by."""
    return LEVELS / (LEVELS - num_dropped(rate))
