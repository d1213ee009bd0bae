"""Attention in one call a layer on an NVIDIA GPU: torch's flash kernel against float64 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fam_engine.kernels.varlen_attention import varlen_attention, varlen_attention_backward
from fam_engine.model import ops, varlen_plan
from fam_engine.model.loading import load_model
from fam_engine.model.varlen_plan import VarlenPlan
from tests.kernels.test_varlen_attention import Case, make_case
from tests.model.packing_reference import Entry, pack_reference
from tests.model.plain import facts_of, random_entries
from tests.simulated.gpu import is_simulated

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

REAL = pytest.mark.real_gpu
# Siblings, prompts and answers of one token, and lengths around blocks of 64 and 128 keys.
LENGTHS = [(1, 1), (1, 2), (64, 65), (63, 2), (127, 130), (300, 40)]


def on_gpu(case: Case) -> tuple[tuple[torch.Tensor, ...], dict[str, object]]:
    keywords = {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in case.keywords.items()
    }
    # Views of one product stay views of one.
    query, key, value = case.tensors
    kv = torch.cat((key, value), dim=1).cuda()
    return (query.cuda(), kv[:, : key.shape[1]], kv[:, key.shape[1] :]), keywords


def in_float64(case: Case) -> Case:
    return Case(tuple(x.double() for x in case.tensors), case.keywords, case.bounds)


def assert_as_exact(found: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor) -> None:
    """An error of at most twice that of the reference in the same dtype, and a rounding."""
    error, own = ((x.cpu().double() - truth).abs().max() for x in (found, plain))
    rounding = torch.finfo(found.dtype).eps / 2
    assert error <= 2 * own + max(rounding, 1e-3) * truth.abs().max(), (error, own)


@pytest.mark.parametrize(
    ("width", "heads", "groups"), [(16, 4, 2), (64, 14, 2), (80, 3, 1), (128, 32, 8), (256, 4, 4)]
)
@pytest.mark.parametrize("window", [None, 1, 20, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_equals_float64(
    width: int, heads: int, groups: int, window: int | None, dtype: torch.dtype
) -> None:
    case = make_case(heads=heads, groups=groups, width=width, window=window, dtype=dtype)
    tensors, keywords = on_gpu(case)
    out, lse = varlen_attention(*tensors, **keywords)  # type: ignore[arg-type]
    exact, exact_lse = varlen_attention(*in_float64(case).tensors, **case.keywords)  # type: ignore[arg-type]
    plain, plain_lse = varlen_attention(*case.tensors, **case.keywords)  # type: ignore[arg-type]
    assert_as_exact(out, plain, exact)
    assert_as_exact(lse, plain_lse, exact_lse)
    grad = torch.randn(exact.shape).to(dtype)
    found = varlen_attention_backward(grad.cuda(), *tensors, out, lse, **keywords)  # type: ignore[arg-type]
    again = varlen_attention_backward(grad.cuda(), *tensors, out, lse, **keywords)  # type: ignore[arg-type]
    wanted = varlen_attention_backward(
        grad.double(),
        *in_float64(case).tensors,
        exact,
        exact_lse,
        **case.keywords,  # type: ignore[arg-type]
    )
    plainly = varlen_attention_backward(grad, *case.tensors, plain, plain_lse, **case.keywords)  # type: ignore[arg-type]
    for one, same, reference, truth in zip(found, again, plainly, wanted, strict=True):
        assert torch.equal(one, same)
        assert_as_exact(one, reference, truth)


@pytest.mark.parametrize("window", [None, 20])
def test_the_bits_of_a_sequence_are_its_own(window: int | None) -> None:
    lengths = [(70, 90), (1, 33), (200, 200), (129, 131)]
    case = make_case(heads=8, width=64, window=window, dtype=torch.bfloat16, lengths=lengths)
    tensors, keywords = on_gpu(case)
    together, _ = varlen_attention(*tensors, **keywords)  # type: ignore[arg-type]
    for (queries, keys), (num_queries, num_keys) in zip(case.bounds, lengths, strict=True):
        alone, _ = varlen_attention(
            *(x[rows] for x, rows in zip(tensors, (queries, keys, keys), strict=True)),
            cu_seqlens_q=torch.tensor([0, num_queries], dtype=torch.int32, device="cuda"),
            cu_seqlens_k=torch.tensor([0, num_keys], dtype=torch.int32, device="cuda"),
            max_seqlen_q=num_queries,
            max_seqlen_k=num_keys,
            window=window,
        )
        assert torch.equal(alone, together[queries])


def entries_with_siblings() -> list[Entry]:
    lengths = [(a // 8 + 1, b // 8 + 1) for a, b in LENGTHS] if is_simulated() else LENGTHS
    entries = random_entries(1000, lengths)
    return [
        *entries,
        (entries[2][0], [3, 1, 4, 1, 5]),
        (entries[5][0], [9] * 70),
        (entries[5][0], [9]),
    ]


@pytest.fixture
def a_call_a_segment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let decoders take the path of fp32, without flash."""
    with monkeypatch.context() as patch:
        patch.setattr(ops, "has_varlen_attention", lambda *_: False)
        yield patch


@pytest.mark.parametrize("keys_per_token", [pytest.param(8, marks=REAL), 1])
def test_one_call_equals_a_call_a_segment(
    checkpoint: str, a_call_a_segment: pytest.MonkeyPatch, keys_per_token: int
) -> None:
    entries = entries_with_siblings()
    decoder = load_model(checkpoint, precision="bf16", compute_dtype="bf16", device="cuda")
    apart = facts_of(decoder, entries)
    a_call_a_segment.undo()
    a_call_a_segment.setattr(varlen_plan, "KEYS_PER_TOKEN", keys_per_token)
    plan = decoder._on_device(pack_reference(entries)).plan
    assert isinstance(plan, VarlenPlan)
    assert (len(plan.tokens) > 1) == (keys_per_token == 1)
    exact = facts_of(load_model(checkpoint, precision="bf16", compute_dtype="fp64"), entries)
    error, own = (
        max(np.abs(a.logprobs - b.logprobs).max() for a, b in zip(found, exact, strict=True))
        for found in (facts_of(decoder, entries), apart)
    )
    assert error <= 2 * own


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=REAL), "nf4"])
def test_nothing_waits_for_the_gpu(checkpoint: str, precision: str) -> None:
    decoder = load_model(checkpoint, precision=precision, compute_dtype="bf16", device="cuda")  # type: ignore[arg-type]
    batch = pack_reference(entries_with_siblings())
    first = decoder.hidden_rows(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = decoder.hidden_rows(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)
