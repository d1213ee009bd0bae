"""The cache: keys and values of texts on their way, in slots of one size.

In: keys and values of prompts, then of one token a slot and step. Out: what each token sees. A slot
that becomes free goes to the next text. All slots are one tensor a layer, [S, C, 2G, d], so that one
call keeps and sees the new tokens of all slots, and lengths are on the device: a step needs nothing of
the host.

On a GPU prompts are kept apart, each once for all its samples, and slots hold what is written alone:
more texts fit. On a CPU a slot begins with a copy of its prompt, as attention in one piece is faster
there (measured, see `kernels/cached_attention.py`).

Sliding windows hide old positions; they do not free them.

Letters: S slots, C positions a slot has room for, E prompts kept apart, P positions a prompt has room
for, R rows of a step (slots, then filling), H query heads, G key heads, d head width.
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
        num_prompts: E; 0: each slot keeps its own prompt.
        prompt_capacity: P, a multiple of 64.
        dtype: Compute dtype.
        device: Where.

    Attributes:
        lengths_S: int64[S], how many positions of a slot are written.
        before_S: int32[S], how many of its prompt come before them.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_slots: int,
        capacity: int,
        num_prompts: int = 0,
        prompt_capacity: int = 0,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        assert capacity % ROW_GRID == prompt_capacity % ROW_GRID == 0
        a_position = (2 * config.num_key_value_heads, config.head_dim)

        def layers(*shape: int) -> list[torch.Tensor]:
            # Zeros: what lies beyond a length may be multiplied by a weight of 0 and has to be finite.
            return [
                torch.zeros(*shape, *a_position, dtype=dtype, device=device)
                for _ in range(config.num_layers)
            ]

        self._layers = layers(num_slots, capacity)
        self._prompts = layers(num_prompts, prompt_capacity) if num_prompts else []
        self._windows = config.sliding_windows
        self.lengths_S = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.before_S = torch.zeros(num_slots, dtype=torch.int32, device=device)
        self._entry_S = torch.zeros_like(self.before_S)
        self.num_slots = num_slots
        self.capacity = capacity
        self.prompt_capacity = prompt_capacity
        # Whose prompt an entry holds, and the slots that see it.
        self._held: list[int | None] = [None] * num_prompts
        self._users: list[set[int]] = [set() for _ in range(num_prompts)]

    def fits(self, num_prompt_tokens: int, num_new_tokens: int) -> bool:
        """Whether a text of these lengths has room in a free slot."""
        if self._prompts:
            return num_prompt_tokens <= self.prompt_capacity and num_new_tokens <= self.capacity
        return num_prompt_tokens + num_new_tokens <= self.capacity

    def has_place(self, prompt: int) -> bool:
        """Whether a prompt, told from others by its number, is kept already or can be."""
        return not self._prompts or prompt in self._held or not all(self._users)

    def begin(self, slot: int, prompt: int, kv: Sequence[torch.Tensor]) -> None:
        """Begin a text in a free slot, after the keys and values of its prompt, [P, 2G, d] a layer."""
        num_tokens = kv[0].shape[0]
        if self._prompts:
            entry = self._keep(prompt, kv)
            self._users[entry].add(slot)
            self._entry_S[slot] = entry
        else:
            for layer, rows in zip(self._layers, kv, strict=True):
                layer[slot, :num_tokens] = rows
        self.before_S[slot] = num_tokens if self._prompts else 0
        self.lengths_S[slot] = 0 if self._prompts else num_tokens

    def _keep(self, prompt: int, kv: Sequence[torch.Tensor]) -> int:
        """Give a prompt's entry; a free one is filled if it has none."""
        if prompt in self._held:
            return self._held.index(prompt)
        entry = self._users.index(set())
        self._held[entry] = prompt
        for layer, rows in zip(self._prompts, kv, strict=True):
            layer[entry, : rows.shape[0]] = rows
        return entry

    def end(self, slot: int) -> None:
        """Free a slot; an entry that nobody sees any more may be filled again."""
        for users in self._users:
            users.discard(slot)

    def attend(
        self, seen_S: torch.Tensor, layer: int, query_RHd: torch.Tensor, kv_RG2d: torch.Tensor
    ) -> torch.Tensor:
        """Keep a layer's new keys and values, and give what the new tokens see, [R, H * d].

        Args:
            seen_S: int32, how many positions of its own each of the first slots sees, with the new
                one, 0 for a free one; there may be fewer than slots.
            layer: Index.
            query_RHd: Turned queries, slot by slot, then filling.
            kv_RG2d: Turned keys, then values.
        """
        count = len(seen_S)
        out_RHd = torch.empty_like(query_RHd, memory_format=torch.contiguous_format)
        out_RHd[count:] = 0
        prompts = None
        if self._prompts:
            prompts = ops.Prompts(
                self._prompts[layer], self._entry_S[:count], self.before_S[:count]
            )
        ops.cached_attention(
            query_RHd[:count],
            self._layers[layer][:count],
            kv_RG2d[:count],
            seen_S,
            window=self._windows[layer],
            out_SHd=out_RHd[:count],
            prompts=prompts,
        )
        return out_RHd.flatten(1)
