"""The reference of varlen attention against float64 a sequence at a time; the kernel itself: tests/gpu."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fam_engine.kernels.varlen_attention import (
    is_supported,
    varlen_attention,
    varlen_attention_backward,
)

# (queries, keys): alone, one token, more keys than queries, none at all, around blocks of 64 and 128.
LENGTHS = [(5, 5), (1, 1), (1, 9), (0, 0), (3, 70), (64, 65), (0, 3), (33, 33), (129, 131)]


@dataclass(frozen=True)
class Case:
    """Random inputs of one call.

    Attributes:
        tensors: Queries, keys, values; views of one product, as the decoder has them.
        keywords: The arguments that are no tensors of values.
        bounds: Queries and keys of each sequence.
    """

    tensors: tuple[torch.Tensor, ...]
    keywords: dict[str, object]
    bounds: list[tuple[slice, slice]]


def make_case(
    *,
    heads: int = 4,
    groups: int = 2,
    width: int = 16,
    window: int | None = None,
    dtype: torch.dtype = torch.float64,
    lengths: list[tuple[int, int]] = LENGTHS,
) -> Case:
    torch.manual_seed(0)
    cu_q, cu_k = (
        list(itertools.accumulate(column, initial=0)) for column in zip(*lengths, strict=True)
    )
    query = torch.randn(cu_q[-1], heads + 1, width).to(dtype)[:, :heads]
    kv = torch.randn(cu_k[-1], 2 * groups, width).to(dtype)
    keywords: dict[str, object] = {
        "cu_seqlens_q": torch.tensor(cu_q, dtype=torch.int32),
        "cu_seqlens_k": torch.tensor(cu_k, dtype=torch.int32),
        "max_seqlen_q": max(q for q, _ in lengths),
        "max_seqlen_k": max(k for _, k in lengths),
        "window": window,
    }
    bounds = [
        (slice(*q), slice(*k))
        for q, k in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True)
    ]
    return Case((query, kv[:, :groups], kv[:, groups:]), keywords, bounds)


def exact(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend query by query in float64; gradients flow."""
    query, key, value = (x.double() for x in case.tensors)
    per_key = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(per_key, dim=1) for x in (key, value))
    window = case.keywords["window"]
    outs, totals = [], []
    for queries, keys in case.bounds:
        num_queries, num_keys = queries.stop - queries.start, keys.stop - keys.start
        for i in range(num_queries):
            stop = keys.stop - num_queries + i + 1
            start = keys.start if window is None else max(keys.start, stop - int(str(window)))
            assert num_keys >= num_queries
            seen = slice(start, stop)
            scores = torch.einsum("hd,khd->hk", query[queries.start + i], key[seen])
            scores = scores / query.shape[2] ** 0.5
            totals.append(scores.logsumexp(-1))
            outs.append(torch.einsum("hk,khd->hd", scores.softmax(-1), value[seen]))
    return torch.stack(outs), torch.stack(totals, dim=1)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (14, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 20, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_float64(heads: int, groups: int, window: int | None, dtype: torch.dtype) -> None:
    case = make_case(heads=heads, groups=groups, window=window, dtype=dtype)
    out, lse = varlen_attention(*case.tensors, **case.keywords)  # type: ignore[arg-type]
    assert (out.dtype, lse.dtype) == (dtype, torch.promote_types(dtype, torch.float32))
    truth, total = exact(case)
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 0.02}[dtype]
    assert (out.double() - truth).abs().max() <= tolerance
    assert (lse.double() - total).abs().max() <= 3e-6


@pytest.mark.parametrize("window", [None, 1, 20])
def test_gradients_are_those_of_autograd(window: int | None) -> None:
    case = make_case(heads=6, window=window)
    leaves = tuple(x.clone().requires_grad_() for x in case.tensors)
    truth, _ = exact(Case(leaves, case.keywords, case.bounds))
    grad = torch.randn_like(truth)
    expected = torch.autograd.grad(truth, leaves, grad)
    out, lse = varlen_attention(*case.tensors, **case.keywords)  # type: ignore[arg-type]
    found = varlen_attention_backward(grad, *case.tensors, out, lse, **case.keywords)  # type: ignore[arg-type]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-12


def test_sequences_know_nothing_of_each_other() -> None:
    case = make_case(dtype=torch.float32)
    before, _ = varlen_attention(*case.tensors, **case.keywords)  # type: ignore[arg-type]
    queries, keys = case.bounds[4]
    for tensor, rows in zip(case.tensors, (queries, keys, keys), strict=True):
        tensor[rows] = torch.nan
    after, _ = varlen_attention(*case.tensors, **case.keywords)  # type: ignore[arg-type]
    others = torch.ones(len(before), dtype=torch.bool)
    others[queries] = False
    assert torch.equal(before[others], after[others])
    assert after[queries].isnan().all()


@pytest.mark.parametrize("window", [None, 20])
def test_torch_has_the_operations_with_these_arguments(window: int | None) -> None:
    """Without a GPU: torch checks what its kernels would be given, and says what shapes they would give."""
    with FakeTensorMode():
        query, grad = (
            torch.empty(96, 8, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2)
        )
        kv = torch.empty(160, 4, 64, device="cuda", dtype=torch.bfloat16)
        cu_seqlens = torch.empty(4, device="cuda", dtype=torch.int32)
        tensors = (query, kv[:, :2], kv[:, 2:])
        keywords = {
            "cu_seqlens_q": cu_seqlens,
            "cu_seqlens_k": cu_seqlens,
            "max_seqlen_q": 64,
            "max_seqlen_k": 128,
            "window": window,
        }
        out, lse = varlen_attention(*tensors, **keywords)  # type: ignore[arg-type]
        assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
        assert (lse.shape, lse.dtype) == ((8, 96), torch.float32)
        found = varlen_attention_backward(grad, *tensors, out, lse, **keywords)  # type: ignore[arg-type]
        assert [x.shape for x in found] == [x.shape for x in tensors]
    assert torch.get_deterministic_debug_mode() == 0


def test_only_a_gpu_has_the_kernel() -> None:
    assert not is_supported(torch.device("cpu"), torch.bfloat16, 128)
    assert not is_supported(torch.device("cuda"), torch.float32, 128)
    assert not is_supported(torch.device("cuda"), torch.bfloat16, 20)
    assert not is_supported(torch.device("cuda"), torch.bfloat16, 264)
