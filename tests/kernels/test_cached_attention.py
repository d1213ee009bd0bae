"""One query a slot, against the definition in float64."""

from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.cached_attention import Prompts, cached_attention
from tests.kernels.newest import take_newest


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
    kept, new = take_newest(kv, int32(lengths))
    cached_attention(query, kept, new, int32(lengths), window=window, out_SHd=out)
    assert torch.equal(kept, kv), "the newest position is kept, and nothing else written"
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
    new = kv[range(5), [length - 1 for length in lengths]]
    cached_attention(query, kv, new, int32(lengths), window=None, out_SHd=together)
    for slot in range(5):
        one = slice(slot, slot + 1)
        alone = torch.zeros_like(query[one])
        here = query[one], kv[one], new[one], int32(lengths[one])
        cached_attention(*here, window=None, out_SHd=alone)
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
    cached_attention(
        query, *take_newest(whole, int32(totals)), int32(totals), window=window, out_SHd=expected
    )
    prompts = Prompts(prompt_kv, int32(entries), int32(prompt_lengths))
    found = torch.zeros_like(query)
    kept = query, *take_newest(own, int32(lengths)), int32(lengths)
    cached_attention(*kept, window=window, out_SHd=found, prompts=prompts)
    assert torch.equal(found, expected)
