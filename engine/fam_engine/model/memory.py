"""How much memory a model needs, and how many tokens of a batch fit what is free.

In: a configuration and the precision. Out: bytes, the default of `--max-tokens-per-batch`, and how GPUs of usual sizes
would be used. Estimates, printed as such; a batch that does not fit all the same is halved by the job that runs it.

Tensors are counted exactly, for the part of the pass in which most of them live (a test follows them from their making
to their end, at the shapes of real models). Not counted is what an allocator rounds up and leaves between them, and the
workspaces of libraries: for these a share of what is free is left over.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from fam_engine.data.packing import ROW_GRID, on_grid
from fam_engine.model.checkpoint import linear_shapes, merged_shapes
from fam_engine.model.config import ModelConfig
from fam_engine.model.products import mlp_rows
from fam_engine.model.varlen_plan import KEYS_PER_TOKEN

# Memory of the cards people have, GiB.
CARDS: Final = (8, 12, 16, 24)
# What a process has of a card before its first tensor: the driver's context, libraries with their workspaces, compiled
# kernels. Not yet measured on a GPU.
CONTEXT_BYTES: Final = 768 << 20
_GROUP: Final = Path("/sys/fs/cgroup")
# Beyond these a larger batch no longer makes the matrix products faster, it only commits later. On a GPU twice as many
# would spread dequantizing further, for 0.7 % of a batch's time (see `decoder`), and take an 8B model above 8 GB.
_MOST_TOKENS = {"cpu": 4096, "cuda": 16384}
# Part of the free memory a batch may take. A CPU's is shared with whatever else runs there.
_SHARE_OF_FREE = {"cpu": 0.4, "cuda": 0.7}
# Bytes a weight: 4 bits, one 8-bit absmax a block of 64, its own absmax every 256 blocks.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Of the head: a tile of logits in fp32 and as much of what is made of it; rows for the logits of targets.
_LOGITS_BYTES = 64 << 20
_HEAD_COLUMNS = 8192


def weight_bytes(config: ModelConfig, precision: str, compute_dtype: torch.dtype) -> int:
    """Give the bytes the loaded weights take, with memory for one matrix in the compute dtype where they need it."""
    largest = max(map(math.prod, merged_shapes(config).values()))
    scratch = largest * compute_dtype.itemsize if precision == "nf4" else 0
    return stored_bytes(config, precision) + scratch


def stored_bytes(config: ModelConfig, precision: str) -> int:
    """Give the bytes of the weights themselves."""
    c = config
    tables = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
    dense = 4 if precision == "fp32" else 2
    a_weight = _NF4_BYTES if precision == "nf4" else dense
    layer = sum(map(math.prod, linear_shapes(c).values()))
    return int(c.num_layers * layer * a_weight + tables * dense)


def batch_bytes(
    config: ModelConfig, num_tokens: int, compute_dtype: torch.dtype, device_type: str
) -> int:
    """Give the bytes the activations of one batch take at their peak, at most.

    Scoring 8B in batches of 16,384 tokens on an H100 held 6.56 GiB at the most; weights and this are 6.71.

    Args:
        config: The model's shape.
        num_tokens: Tokens, each of them a row of the head too: more rows there are hardly ever.
        compute_dtype: Dtype of the activations.
        device_type: `cpu` or `cuda`, which gathers the keys of shared prompts.
    """
    c, itemsize = config, compute_dtype.itemsize
    # Of a few rows gate and up, of which a CPU makes copies on the way; the head's tile.
    factors = (4 if device_type == "cpu" else 2) * mlp_rows(device_type) * c.intermediate_size
    fixed = factors + _HEAD_COLUMNS * c.hidden_size
    return num_tokens * _token_bytes(c, itemsize, device_type) + fixed * itemsize + _LOGITS_BYTES


def _token_bytes(config: ModelConfig, itemsize: int, device_type: str) -> int:
    """Give the bytes of a token in the part of the pass that takes the most; the parts follow one another."""
    c = config
    query, keys = c.num_attention_heads * c.head_dim, 2 * c.num_key_value_heads * c.head_dim
    gathered = KEYS_PER_TOKEN * keys if device_type == "cuda" else 0
    # Residual stream; queries, keys and values; the keys once more; what attention makes of them.
    attention = c.hidden_size + (query + keys) + gathered + query
    # Residual stream, normed, activated.
    mlp = 2 * c.hidden_size + c.intermediate_size
    # Rows before and after the last norm, in fp32 on a CPU; four figures a tile of the vocabulary.
    head = 2 * c.hidden_size * itemsize + 4 * (c.hidden_size + 4 * (c.vocab_size // 1024 + 1))
    # Beside all of them: cos and sin in fp32, others for layers without rope; ids and the index of the keys in int32.
    tables = len(set(c.uses_rope)) * 4 * c.head_dim
    return max(attention * itemsize, mlp * itemsize, head) + tables + 4 * 16


def free_bytes(device: torch.device) -> int:
    """Give the memory that may still be taken on a device, bytes."""
    if device.type == "cuda":
        # What torch's allocator holds for nobody it uses again, or gives back when the driver has no more.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text(encoding="ascii").splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _left_in_group())
    # macOS does not say what is free; half of what there is leaves room for the rest.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_group() -> int:
    """Give what the control group of this process, a container's say, may still take (cgroup v2, `memory.max`)."""
    try:
        limit = (_GROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_GROUP / "memory.current").read_text(encoding="ascii"))
        stat = (_GROUP / "memory.stat").read_text(encoding="ascii")
    except FileNotFoundError:  # no such group, or an older kind
        return sys.maxsize
    if limit == "max":
        return sys.maxsize
    # Pages of files count as used, and are given up when others are wanted.
    numbers = dict(line.split() for line in stat.splitlines())
    return max(int(limit) - used + int(numbers["inactive_file"]), 0)


def num_multiprocessors(device: torch.device) -> int:
    """Give a GPU's multiprocessors; 0 of a CPU."""
    if device.type == "cpu":
        return 0
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def default_tokens_per_batch(
    config: ModelConfig, device: torch.device, compute_dtype: torch.dtype
) -> int:
    """Give the batch size that fits comfortably in what is free now, the weights being loaded."""
    return tokens_that_fit(config, free_bytes(device), compute_dtype, device.type)


def tokens_that_fit(
    config: ModelConfig, free: int, compute_dtype: torch.dtype, device_type: str
) -> int:
    """Give the batch size that fits comfortably in so many bytes, a multiple of 64 tokens, never 0."""
    fixed = batch_bytes(config, 0, compute_dtype, device_type)
    share = int(free * _SHARE_OF_FREE[device_type]) - fixed
    fitting = share // _token_bytes(config, compute_dtype.itemsize, device_type)
    return max(ROW_GRID, min(fitting, _MOST_TOKENS[device_type]) // ROW_GRID * ROW_GRID)


@dataclass(frozen=True)
class DevicePlan:
    """How a model would use the memory of a device, all estimated.

    Attributes:
        weight_bytes: What its weights take.
        left_bytes: What is left for batches beside them; below 0 where they do not fit.
        least_bytes: What the weights and the longest record, alone in its batch, take.
        max_tokens_per_batch: The default there; 0 where not even that record fits.
    """

    weight_bytes: int
    left_bytes: int
    least_bytes: int
    max_tokens_per_batch: int


def plan_device(
    config: ModelConfig,
    *,
    precision: str,
    compute_dtype: torch.dtype,
    device_type: str,
    free: int,
    longest: int,
) -> DevicePlan:
    """Plan the memory of a device, before anything is loaded.

    Args:
        config: The model's shape.
        precision: Of the weights.
        compute_dtype: Of the activations.
        device_type: `cpu` or `cuda`.
        free: Bytes a process may take there.
        longest: Tokens of the longest record.
    """
    weights = weight_bytes(config, precision, compute_dtype)
    least = weights + batch_bytes(config, on_grid(longest), compute_dtype, device_type)
    fitting = tokens_that_fit(config, free - weights, compute_dtype, device_type)
    return DevicePlan(weights, free - weights, least, fitting if least <= free else 0)


def plan_cards(
    config: ModelConfig, *, precision: str, compute_dtype: torch.dtype, longest: int
) -> dict[int, DevicePlan]:
    """Plan the memory of GPUs of usual sizes, by their size in GiB; see `plan_device`."""
    return {
        size: plan_device(
            config,
            precision=precision,
            compute_dtype=compute_dtype,
            device_type="cuda",
            free=(size << 30) - CONTEXT_BYTES,
            longest=longest,
        )
        for size in CARDS
    }
