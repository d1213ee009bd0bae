"""Seeds and positions whose random number is a wished one: the hash of `fam_engine.kernels.sample`, undone."""

from __future__ import annotations

import torch

_MASK = (1 << 64) - 1
_STEP, _FACTORS = 0x9E3779B97F4A7C15, (0x94D049BB133111EB, 0xBF58476D1CE4E5B9)


def seeds_of(numbers_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give int64[R] seeds and positions on the device of numbers in [0, 1), which are met to 2^-53."""
    positions = range(len(numbers_R))
    seeds = [
        _seed(int(number * 2**53), position)
        for number, position in zip(numbers_R.tolist(), positions, strict=True)
    ]
    device = numbers_R.device
    return torch.tensor(seeds, device=device), torch.tensor(positions, device=device)


def _seed(number: int, position: int) -> int:
    x = _unshifted(number << 11, 31)
    for factor, shift in zip(_FACTORS, (27, 30), strict=True):
        x = _unshifted(x * pow(factor, -1, 1 << 64) & _MASK, shift)
    seed = (x - (position + 1) * _STEP) & _MASK
    return seed - (1 << 64) * (seed >> 63)


def _unshifted(mixed: int, shift: int) -> int:
    """Give the x of which x ^ (x >> shift) is `mixed`."""
    x = mixed
    for _ in range(64 // shift):
        x = mixed ^ (x >> shift)
    return x
