"""Torch's flash attention on the simulated GPU: its contract checked, its result by the plain reference.

The contract is that of `flash_api.cpp` in torch 2.11 (`mha_varlen_fwd`, `mha_varlen_bwd`).
"""

from __future__ import annotations

import torch

from fam_engine.kernels import varlen_attention as reference


def _check(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cu_seqlens: tuple[torch.Tensor, torch.Tensor],
    max_seqlens: tuple[int, int],
) -> None:
    """Check queries, keys and values; then bounds of sequences, and the longest, of queries and of keys."""
    query, key, value = tensors
    for x in tensors:
        assert x.dtype in (torch.bfloat16, torch.float16), x.dtype
        assert x.dtype == query.dtype
        assert x.dim() == 3
        assert x.stride(-1) == 1
        assert x.shape[2] % 8 == 0
        assert x.shape[2] <= 256
        assert all(stride % 8 == 0 for stride in x.stride()[:2]), x.stride()  # 16 bytes at a time
        assert x.storage_offset() % 8 == 0
    assert key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0
    for bounds, longest, x in zip(cu_seqlens, max_seqlens, (query, key), strict=True):
        assert bounds.dtype == torch.int32
        assert bounds.is_contiguous()
        assert int(bounds[0]) == 0
        assert int(bounds[-1]) == len(x)
        assert 0 < int(bounds.diff().max()) <= longest
    assert len(cu_seqlens[0]) == len(cu_seqlens[1])


def _window(is_causal: bool, left: int, right: int) -> int | None:
    assert right == 0
    assert is_causal == (left == -1)
    return None if left == -1 else left + 1


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    window_size_left: int,
    window_size_right: int,
) -> tuple[torch.Tensor, ...]:
    """`aten::_flash_attention_forward` of a packed batch."""
    assert dropout_p == 0
    assert not return_debug_mask
    _check((query, key, value), (cum_seq_q, cum_seq_k), (max_q, max_k))
    window = _window(is_causal, window_size_left, window_size_right)
    out, lse = reference._forward_by_sequence(query, key, value, cum_seq_q, cum_seq_k, window)
    empty = torch.empty(0)
    return out, lse, torch.zeros(2, dtype=torch.uint64), empty, empty.clone()


def backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: torch.Tensor,
    unused: torch.Tensor,
    *,
    window_size_left: int,
    window_size_right: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`aten::_flash_attention_backward` of a packed batch."""
    assert dropout_p == 0
    assert rng_state.dtype == torch.uint64
    assert unused.numel() == 0
    _check((query, key, value), (cum_seq_q, cum_seq_k), (max_q, max_k))
    for x in (grad_out, out):
        assert x.shape == query.shape
        assert x.dtype == query.dtype
        assert x.stride(-1) == 1
    assert logsumexp.dtype == torch.float32
    assert logsumexp.shape == (query.shape[1], len(query))
    assert torch.are_deterministic_algorithms_enabled()
    window = _window(is_causal, window_size_left, window_size_right)
    tensors = (grad_out, query, key, value, out, logsumexp)
    return reference._backward_by_sequence(tensors, cum_seq_q, cum_seq_k, window)
