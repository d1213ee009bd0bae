"""Slots as they are before their newest position is kept."""

from __future__ import annotations

import torch


def take_newest(
    kv_SCGd: torch.Tensor, lengths_S: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give slots with NaN for their last positions, and these positions, [S, 2G, d]; of empty slots NaN."""
    kept, is_active_S = kv_SCGd.clone(), lengths_S > 0
    new_SGd = torch.full_like(kv_SCGd[:, 0], torch.nan)
    last = is_active_S, lengths_S[is_active_S] - 1
    new_SGd[is_active_S] = kept[last]
    kept[last] = torch.nan
    return kept, new_SGd
