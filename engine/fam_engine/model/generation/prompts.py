"""Prompts: computed once, whatever number of samples continue them.

In: contexts. Out: for each the keys and values of every layer and the hidden state that predicts the
first token. A prompt's attention is its own and the row count is on the grid, so on the CPU its bits
do not depend on which prompts are computed with it (see `fam_engine.model.products`). On a GPU products of
another height may take another kernel, so there all batches are filled up to one height; a prompt that
is longer is a batch of its own. That a row then has the same bits wherever it lies is what products of
one shape should give and the tests ask for; so it is on an H100.

Letters: T tokens of all prompts, P of one, N prompts, R rows, D hidden size, G key heads, d head
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from fam_engine.data.packing import NO_PARENT, ROW_GRID, Int32, PackedBatch, on_grid
from fam_engine.model.decoder import Decoder

# Tokens of prompts computed as one batch, and the height of all batches on a GPU: wide enough for full
# matrix products, and little memory while prompts wait for slots.
BATCH_TOKENS: Final = 1024
# Prompts of a batch: one height of the product that needs their last tokens alone.
BATCH_PROMPTS: Final = ROW_GRID


@dataclass(frozen=True, eq=False)
class Prompt:
    """A computed prompt.

    Attributes:
        kv: [P, 2G, d] a layer: turned keys, then values.
        hidden_D: Hidden state of its last token, after the final norm.
    """

    kv: tuple[torch.Tensor, ...]
    hidden_D: torch.Tensor


def compute_prompts(decoder: Decoder, contexts: Sequence[Int32]) -> list[Prompt]:
    """Compute contexts as one batch.

    Args:
        decoder: The model.
        contexts: N arrays of ids, none empty; together at most `BATCH_TOKENS` long, if they are
            more than one, and at most `BATCH_PROMPTS`.

    Returns:
        N prompts.
    """
    batch = pack_prompts(contexts, at_least=BATCH_TOKENS if decoder.device.type == "cuda" else 0)
    layers: list[torch.Tensor] = []
    hidden_RD = decoder.hidden_rows(batch, keep_kv=lambda _, kv: layers.append(kv.clone()))
    bounds = batch.cu_seqlens.tolist()
    return [
        Prompt(tuple(kv[bounds[n] : bounds[n + 1]] for kv in layers), hidden_RD[n])
        for n in range(len(contexts))
    ]


def pack_prompts(contexts: Sequence[Int32], *, at_least: int) -> PackedBatch:
    """Pack contexts, each a segment whose last row predicts, and fill up to so many tokens."""
    lengths = [len(context) for context in contexts]
    num_tokens = sum(lengths)
    filling = max(-num_tokens % ROW_GRID, at_least - num_tokens)
    segments = [*lengths, filling] if filling else lengths
    bounds = np.cumsum([0, *segments]).astype(np.int32)
    num_rows = len(contexts)
    rows = np.zeros(on_grid(num_rows), np.int32)
    rows[:num_rows] = bounds[1 : num_rows + 1] - 1
    return PackedBatch(
        input_ids=np.concatenate([*contexts, np.zeros(filling, np.int32)]).astype(np.int32),
        position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in segments]),
        cu_seqlens=bounds,
        parents=np.full(len(segments), NO_PARENT, np.int32),
        rows=rows,
        targets=np.zeros_like(rows),
        num_rows=num_rows,
        entry_rows=np.arange(num_rows + 1, dtype=np.int64),
        entries=np.arange(num_rows, dtype=np.int64),
    )
