"""How much memory a model needs, and how many tokens of a batch fit what is free.

In: a configuration and the precision. Out: bytes, and the default of `--max-tokens-per-batch`. An estimate, printed as
one; a batch that does not fit all the same is halved by the job that runs it.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fam_engine.model.config import ModelConfig

# Beyond these a larger batch no longer makes the matrix products faster, it only commits later.
_MOST_TOKENS = {"cpu": 4096, "cuda": 32768}
# Part of the free memory a batch may take; the rest is for what the estimate does not know.
_SHARE_OF_FREE = 0.4
# Bytes a weight: 4 bits, one 8-bit absmax a block of 64, its own absmax every 256 blocks.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
_HEAD_TILE_BYTES = 64 << 20


def weight_bytes(config: ModelConfig, precision: str, compute_dtype: torch.dtype) -> int:
    """Give the bytes the loaded weights take, one layer's scratch in compute precision included."""
    c = config
    width = c.num_attention_heads * c.head_dim
    kv_width = c.num_key_value_heads * c.head_dim
    sizes = (
        c.hidden_size * (width + 2 * kv_width),
        c.hidden_size * width,
        2 * c.hidden_size * c.intermediate_size,
        c.hidden_size * c.intermediate_size,
    )
    tables = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
    dense = 4 if precision == "fp32" else 2
    a_weight = _NF4_BYTES if precision == "nf4" else dense
    scratch = max(sizes) * compute_dtype.itemsize if precision == "nf4" else 0
    return int(c.num_layers * sum(sizes) * a_weight + tables * dense + scratch)


def batch_bytes(config: ModelConfig, num_tokens: int, compute_dtype: torch.dtype) -> int:
    """Give the bytes the activations of one batch take at their peak."""
    c = config
    qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    a_token = 4 * c.hidden_size + 2 * qkv + 3 * c.intermediate_size
    # The head keeps its rows in fp32 and four fp32 figures a row and tile of the vocabulary.
    a_row = 4 * (c.hidden_size + 4 * (c.vocab_size // 1024 + 1))
    return num_tokens * (a_token * compute_dtype.itemsize + a_row) + _HEAD_TILE_BYTES


def free_bytes(device: torch.device) -> int:
    """Give the memory that may still be taken on a device, bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text(encoding="ascii").splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    # macOS does not say what is free; half of what there is leaves room for the rest.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def default_tokens_per_batch(
    config: ModelConfig, device: torch.device, compute_dtype: torch.dtype
) -> int:
    """Give the batch size that fits comfortably in what is free now, a multiple of 64 tokens."""
    a_token = batch_bytes(config, 1, compute_dtype) - _HEAD_TILE_BYTES
    fitting = int(free_bytes(device) * _SHARE_OF_FREE) // a_token
    return max(64, min(fitting, _MOST_TOKENS[device.type]) // 64 * 64)
