"""The cache: keys and values of texts on their way, in slots of one size.

In: keys and values of prompts, then of one token a slot and step. Out: what each token sees. A slot
that becomes free goes to the next text. All slots are one tensor a layer, [S, C, 2G, d], so that the
new tokens of all slots are written at once.

Sliding windows hide old positions; they do not free them.

Letters: S slots, C positions a slot has room for, R rows of a step (slots, then filling), H query
heads, G key heads, d head width, P tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fam_engine.data.packing import ROW_GRID
from fam_engine.model import ops
from fam_engine.model.config import ModelConfig


def bytes_per_position(config: ModelConfig, dtype: torch.dtype) -> int:
    """Give the bytes that one token takes in all layers."""
    return config.num_layers * 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize


class KVCache:
    """Keys and values of S texts.

    Args:
        config: The model's shape.
        num_slots: S.
        capacity: C, a multiple of 64.
        dtype: Compute dtype.
        device: Where.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_slots: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        assert capacity % ROW_GRID == 0
        shape = (num_slots, capacity, 2 * config.num_key_value_heads, config.head_dim)
        # Zeros: what lies beyond a length may be multiplied by a weight of 0 and has to be finite.
        self._layers = [
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)
        ]
        self._windows = config.sliding_windows
        self._device = device
        self._slots = torch.arange(num_slots, device=device)
        self._places = torch.zeros_like(self._slots)
        self._seen = torch.zeros(num_slots, dtype=torch.int32, device=device)
        self.num_slots = num_slots
        self.capacity = capacity
        self.lengths = [0] * num_slots

    def put(self, slot: int, kv: Sequence[torch.Tensor]) -> None:
        """Begin a text in a slot with the keys and values of its prompt, [P, 2G, d] a layer."""
        self.lengths[slot] = kv[0].shape[0]
        for layer, rows in zip(self._layers, kv, strict=True):
            layer[slot, : rows.shape[0]] = rows

    def begin_step(self, is_active: Sequence[bool]) -> list[int]:
        """Make room for one more token in the active slots.

        Returns:
            The position of each slot's new token; 0 for the others, which write to their first
            place and are seen by nobody.
        """
        pairs = list(zip(self.lengths, is_active, strict=True))
        places = [length if active else 0 for length, active in pairs]
        self.lengths = [length + active for length, active in pairs]
        seen = [length + 1 if active else 0 for length, active in pairs]
        self._seen = torch.tensor(seen, dtype=torch.int32, device=self._device)
        self._places = torch.tensor(places, device=self._device)
        return places

    def attend(self, layer: int, query_RHd: torch.Tensor, kv_RG2d: torch.Tensor) -> torch.Tensor:
        """Keep a layer's new keys and values, and give what the new tokens see, [R, H * d]."""
        cache_SCG2d = self._layers[layer]
        cache_SCG2d[self._slots, self._places] = kv_RG2d[: self.num_slots]
        out_RHd = query_RHd.new_zeros(query_RHd.shape)
        ops.cached_attention(
            query_RHd[: self.num_slots],
            cache_SCG2d,
            self._seen,
            window=self._windows[layer],
            out_SHd=out_RHd[: self.num_slots],
        )
        return out_RHd.flatten(1)
