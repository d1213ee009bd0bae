"""One query a slot, against the definition in float64."""

from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.cached_attention import Prompts, cached_attention


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 2, 16), (3, 1, 8), (4, 4, 80)])
@pytest.mark.parametrize("window", [None, 1, 20])
def test_equals_the_definition(
    dtype: torch.dtype, heads: int, groups: int, width: int, window: int | None
) -> None:
    torch.manual_seed(0)
    lengths = [1, 5, 0, 64, 37, 20, 21]
    query = torch.randn(len(lengths), heads, width).to(dtype)
    kv = torch.randn(len(lengths), 64, 2 * groups, width).to(dtype)
    out = torch.full_like(query, 7.0)
    cached_attention(query, kv, int32(lengths), window=window, out_SHd=out)
    for slot, length in enumerate(lengths):
        if not length:
            assert (out[slot] == 7.0).all()
            continue
        first = max(0, length - window) if window else 0
        seen = kv[slot, first:length].double().repeat_interleave(heads // groups, dim=1)
        key, value = seen[:, :heads], seen[:, heads:]
        scores = torch.einsum("hd,khd->hk", query[slot].double(), key) / width**0.5
        truth = torch.einsum("hk,khd->hd", scores.softmax(-1), value)
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        assert (out[slot].double() - truth).abs().max() <= tolerance * (1 + truth.abs().max())


def test_a_slot_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    query, kv = torch.randn(5, 4, 16), torch.randn(5, 128, 4, 16)
    lengths = [128, 3, 77, 64, 100]
    together = torch.zeros_like(query)
    cached_attention(query, kv, int32(lengths), window=None, out_SHd=together)
    for slot in range(5):
        one = slice(slot, slot + 1)
        alone = torch.zeros_like(query[one])
        cached_attention(query[one], kv[one], int32(lengths[one]), window=None, out_SHd=alone)
        assert torch.equal(alone, together[one])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 20, 90])
def test_a_shared_prompt_gives_the_bits_of_a_prompt_of_one_s_own(
    dtype: torch.dtype, window: int | None
) -> None:
    torch.manual_seed(0)
    entries, prompt_lengths, lengths = [1, 0, 1, 1, 0], [70, 0, 70, 70, 64], [1, 5, 0, 64, 37]
    query = torch.randn(5, 4, 16).to(dtype)
    prompt_kv, own = torch.randn(2, 128, 4, 16).to(dtype), torch.randn(5, 64, 4, 16).to(dtype)
    whole = torch.zeros(5, 192, 4, 16, dtype=dtype)
    totals = [0] * 5
    for slot in (0, 1, 3, 4):
        before, total = prompt_lengths[slot], prompt_lengths[slot] + lengths[slot]
        whole[slot, :before] = prompt_kv[entries[slot], :before]
        whole[slot, before:total] = own[slot, : lengths[slot]]
        totals[slot] = total
    expected = torch.zeros_like(query)
    cached_attention(query, whole, int32(totals), window=window, out_SHd=expected)
    prompts = Prompts(prompt_kv, int32(entries), int32(prompt_lengths))
    found = torch.zeros_like(query)
    cached_attention(query, own, int32(lengths), window=window, out_SHd=found, prompts=prompts)
    assert torch.equal(found, expected)
