from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.attention import attention, visibility_mask


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) / q.shape[2] ** 0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


def visible_by_hand(
    num_queries: int, num_keys: int, first: int, window: int | None
) -> torch.Tensor:
    return torch.tensor(
        [
            [k <= q and (window is None or q - k < window) for k in range(num_keys)]
            for q in range(first, first + num_queries)
        ]
    )


# Heads: one to one, grouped, one key. Queries: 1, and around the blocks of 32 of the flash kernel.
@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (14, 2), (3, 1)])
@pytest.mark.parametrize(
    ("num_queries", "first", "window"),
    [(1, 0, None), (1, 9, None), (33, 0, None), (33, 70, None), (65, 3, 20), (40, 40, 1)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_dense_float64(
    heads: int, keys: int, num_queries: int, first: int, window: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    num_keys, width = first + num_queries, 24
    qkv = torch.randn(num_keys, heads + 2 * keys, width).to(dtype)
    q, k, v = qkv[first:, :heads], qkv[:, heads : heads + keys], qkv[:, heads + keys :]
    mask = visibility_mask(num_queries, num_keys, first_query=first, window=window, like=qkv)
    visible = visible_by_hand(num_queries, num_keys, first, window)
    assert torch.equal(mask == 0, visible)
    assert torch.equal(mask == -torch.inf, ~visible)
    out = torch.empty(num_queries, heads, width, dtype=dtype)
    attention(q, k, v, out_QHd=out, mask_QS=mask, is_causal=False)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 0.02}[dtype]
    assert (out.double() - dense(q, k, v, visible)).abs().max() <= tolerance
    if first == 0 and window is None:
        causal = torch.empty_like(out)
        attention(q, k, v, out_QHd=causal, mask_QS=None, is_causal=True)
        assert (causal.double() - dense(q, k, v, visible)).abs().max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_do_not_change_bits(dtype: torch.dtype) -> None:
    # Keys are a view into the batch when prompt and response are neighbours, else a copy.
    torch.manual_seed(0)
    for num_keys, num_queries in ((7, 3), (100, 65), (300, 200), (600, 40)):
        qkv = torch.randn(num_keys, 18, 64).to(dtype)
        q, k, v = qkv[-num_queries:, :14], qkv[:, 14:16], qkv[:, 16:]
        mask = visibility_mask(
            num_queries, num_keys, first_query=num_keys - num_queries, window=None, like=qkv
        )
        outs = []
        for query, key, value in ((q, k, v), (q.clone(), k.contiguous(), v.contiguous())):
            outs.append(torch.empty(num_queries, 14, 64, dtype=dtype))
            attention(query, key, value, out_QHd=outs[-1], mask_QS=mask, is_causal=False)
        assert torch.equal(*outs)
