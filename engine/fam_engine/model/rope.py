"""Rotary tables: cos and sin of every position a batch needs, layer by layer.

In: the model's shape and position ids. Out: cos, sin [T, d / 2] of each layer.

Frequencies and angles are computed in fp32, in the order of operations of transformers 5.23
`modeling_rope_utils.py`, even when the model computes in fp64: models were trained and published
with these very angles (an fp32 frequency is off by up to 6e-8 of itself, 2e-4 rad at position
4,000), so more exact ones would be another model. Tables grow by doubling: their values never
depend on a batch.

A layer without rope has cos 1 and sin 0: a * 1 - b * 0 is a in every dtype, forward and back, so nothing that
turns heads knows of such layers. Rejected: leaving the turn out, which saves them one reading and writing
of queries and keys, and is a second path wherever heads are turned.

Letters: N positions in the table, T tokens, d head width.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from fam_engine.model.config import ModelConfig
from fam_engine.model.rope_config import RopeConfig

# cos and sin, each [T, d / 2] of tokens, or [N, d / 2] of positions.
Tables = tuple[torch.Tensor, torch.Tensor]

_FIRST_LENGTH: Final = 2048


class RopeTables:
    """Cos and sin tables of one model.

    Args:
        config: The model's shape.
        dtype: fp32 or fp64.
        device: Where the tables live.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self._inverse_frequencies = inverse_frequencies(config.rope, config.head_dim)
        self._factor = config.rope.attention_factor
        self._uses_rope = config.uses_rope
        self._dtype = dtype
        self._device = device
        self._cos_Nd, self._sin_Nd = self._compute(_FIRST_LENGTH)

    def look_up(self, position_ids: torch.Tensor, *, num_positions: int) -> list[Tables]:
        """Give each layer's cos and sin [T, d / 2] of int positions [T], all below `num_positions`."""
        return self.of_layers(position_ids, self.tables(num_positions))

    def of_layers(self, position_ids: torch.Tensor, tables: Tables) -> list[Tables]:
        """Give each layer's cos and sin [T, d / 2] of int positions [T], from `tables` that hold them."""
        cos_Td, sin_Td = (table_Nd[position_ids] for table_Nd in tables)
        turning = still = (cos_Td, sin_Td)
        if not all(self._uses_rope):
            still = (torch.ones_like(cos_Td), torch.zeros_like(sin_Td))
        return [turning if uses_rope else still for uses_rope in self._uses_rope]

    def tables(self, num_positions: int) -> Tables:
        """Give cos and sin [N, d / 2] of all positions below `num_positions`, or more."""
        length = self._cos_Nd.shape[0]
        if num_positions > length:
            while length < num_positions:
                length *= 2
            self._cos_Nd, self._sin_Nd = self._compute(length)
        return self._cos_Nd, self._sin_Nd

    def _compute(self, length: int) -> Tables:
        angles_Nd = torch.arange(length, dtype=torch.float32)[:, None] * self._inverse_frequencies
        cos_Nd, sin_Nd = angles_Nd.cos() * self._factor, angles_Nd.sin() * self._factor
        return cos_Nd.to(self._device, self._dtype), sin_Nd.to(self._device, self._dtype)


def inverse_frequencies(config: RopeConfig, head_dim: int) -> torch.Tensor:
    """Give float32[head_dim / 2]: radians per position of each pair of dimensions."""
    powers = config.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    match config.type:
        case "default":
            return 1.0 / powers
        case "linear":
            return 1.0 / powers / config.factor
        case "llama3":
            return _llama3(config, 1.0 / powers)
        case "yarn":
            return _yarn(config, powers)


def _llama3(config: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    """Slow down long wavelengths, keep short ones, blend between (Llama 3.1)."""
    original, low, high = (
        config.original_max_position_embeddings,
        config.low_freq_factor,
        config.high_freq_factor,
    )
    wavelengths = 2 * math.pi / frequencies
    is_long, is_short = wavelengths > original / low, wavelengths < original / high
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / config.factor + smooth * frequencies
    result = torch.where(is_long, frequencies / config.factor, blended)
    return torch.where(is_short, frequencies, result)


def _yarn(config: RopeConfig, powers: torch.Tensor) -> torch.Tensor:
    """Blend by how often a dimension turns in the original context (YaRN, arXiv 2309.00071, 3.2)."""
    num_pairs = powers.shape[0]
    low = _yarn_dimension(config, config.beta_fast, 2 * num_pairs)
    high = _yarn_dimension(config, config.beta_slow, 2 * num_pairs)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * num_pairs - 1)
    if low == high:
        high += 0.001  # no division by zero
    ramp = ((torch.arange(num_pairs, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (config.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _yarn_dimension(config: RopeConfig, num_rotations: float, head_dim: int) -> float:
    """Give the dimension that turns so often in the original context (the paper's equation 15)."""
    turns = config.original_max_position_embeddings / (num_rotations * 2 * math.pi)
    return head_dim * math.log(turns) / (2 * math.log(config.theta))
