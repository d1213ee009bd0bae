"""One query a slot, against the definition in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fam_engine.kernels.cached_attention import Prompts
from fam_engine.kernels.cached_attention_triton import cached_attention
from tests.kernels.newest import take_newest
from tests.kernels.on import DEVICE, DTYPES

# Around the blocks of 64 keys, and over the parts of 256; 0: an empty slot.
LENGTHS = [0, 1, 63, 64, 65, 300]
CAPACITY = 320


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def definition(query: torch.Tensor, kv: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attend in float64: query [H, d], all keys and values of the slot [L, 2G, d]."""
    num_heads, width = query.shape
    seen = kv if window is None else kv[-window:]
    key, value = seen.double().repeat_interleave(2 * num_heads // kv.shape[1], dim=1).chunk(2, 1)
    scores = torch.einsum("hd,khd->hk", query.double(), key) / width**0.5
    return torch.einsum("hk,khd->hd", scores.softmax(-1), value)


def assert_near(found: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> None:
    # Weights and result are rounded to the dtype; in fp32 sums of 300 products remain.
    tolerance = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert (found.double() - truth).abs().max() <= tolerance * (1 + truth.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "groups", "width"), [(2, 2, 16), (8, 2, 64), (7, 1, 64), (4, 1, 128), (20, 1, 80)]
)
def test_equals_the_definition(dtype: torch.dtype, heads: int, groups: int, width: int) -> None:
    query = random(len(LENGTHS), heads, width, dtype=dtype, seed=0)
    kv = random(len(LENGTHS), CAPACITY, 2 * groups, width, dtype=dtype, seed=1)
    out = torch.full_like(query, torch.nan)
    kept, new = take_newest(kv, int32(LENGTHS))
    cached_attention(query, kept, new, int32(LENGTHS), window=None, out_SHd=out)
    assert torch.equal(kept, kv), "the newest position is kept, and nothing else written"
    assert (out[0] == 0).all(), "an empty slot"
    for slot, length in enumerate(LENGTHS):
        if length:
            truth = definition(query[slot], kv[slot, :length], None)
            assert_near(out[slot], truth, dtype)


@pytest.mark.parametrize("window", [1, 20, 64, 270])
def test_a_window_hides_what_is_further_back(window: int) -> None:
    query = random(len(LENGTHS), 4, 16, dtype=torch.float32, seed=0)
    kv = random(len(LENGTHS), CAPACITY, 4, 16, dtype=torch.float32, seed=1)
    for slot, length in enumerate(LENGTHS):
        kv[slot, : max(0, length - window)] = torch.nan
    out = torch.zeros_like(query)
    kept, new = take_newest(kv, int32(LENGTHS))
    cached_attention(query, kept, new, int32(LENGTHS), window=window, out_SHd=out)
    for slot, length in enumerate(LENGTHS):
        if length:
            truth = definition(query[slot], kv[slot, :length], window)
            assert_near(out[slot], truth, torch.float32)


def poisoned(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Prompts]:
    """Make queries, keys and shared prompts with NaN wherever nothing is to be read."""
    query = random(len(LENGTHS), 4, 16, dtype=dtype, seed=0)
    kv = random(len(LENGTHS), CAPACITY, 4, 16, dtype=dtype, seed=1)
    for slot, length in enumerate(LENGTHS):
        kv[slot, length:] = torch.nan
    prompt_kv = random(3, 320, 4, 16, dtype=dtype, seed=2)
    prompt_kv[0], prompt_kv[1, 70:], prompt_kv[2, 301:] = torch.nan, torch.nan, torch.nan
    prompts = Prompts(prompt_kv, int32([1, 2, 1, 1, 0, 2]), int32([70, 301, 70, 64, 0, 301]))
    return query, kv, prompts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 80, 320])
def test_shared_prompts_come_before_a_slot_s_own_keys(
    dtype: torch.dtype, window: int | None
) -> None:
    query, kv, prompts = poisoned(dtype)
    out = torch.zeros_like(query)
    kept, new = take_newest(kv, int32(LENGTHS))
    cached_attention(query, kept, new, int32(LENGTHS), window=window, out_SHd=out, prompts=prompts)
    assert torch.equal(kept.nan_to_num(), kv.nan_to_num())
    entries, befores = prompts.entry_S.tolist(), prompts.lengths_S.tolist()
    assert (out[0] == 0).all(), "an empty slot sees nothing of its prompt"
    for slot, length in enumerate(LENGTHS):
        if length:
            prompt = prompts.kv_EPGd[entries[slot], : befores[slot]]
            whole = torch.cat((prompt, kv[slot, :length]))
            assert_near(out[slot], definition(query[slot], whole, window), dtype)


def test_a_slot_does_not_depend_on_its_place_neighbours_or_room() -> None:
    query, kv, prompts = poisoned(torch.float32)
    lengths = int32(LENGTHS)
    out = torch.zeros_like(query)
    kv, new = take_newest(kv, lengths)
    cached_attention(query, kv.clone(), new, lengths, window=None, out_SHd=out, prompts=prompts)
    order = torch.tensor([5, 2, 0, 4, 1, 3], device=DEVICE)
    moved = replace(prompts, entry_S=prompts.entry_S[order], lengths_S=prompts.lengths_S[order])
    found = torch.zeros_like(query)
    cached_attention(
        query[order],
        kv[order],
        new[order],
        lengths[order],
        window=None,
        out_SHd=found,
        prompts=moved,
    )
    assert torch.equal(found, out[order])
    roomy = torch.full((1, 6000, 4, 16), torch.nan, device=DEVICE)
    roomy[0, :CAPACITY] = kv[5]
    roomy_prompt = torch.full((1, 3000, 4, 16), torch.nan, device=DEVICE)
    roomy_prompt[0, :320] = prompts.kv_EPGd[2]
    alone = Prompts(roomy_prompt, int32([0]), int32([301]))
    found = torch.zeros_like(query[5:])
    cached_attention(
        query[5:], roomy, new[5:], int32([300]), window=None, out_SHd=found, prompts=alone
    )
    assert torch.equal(found[0], out[5])


def test_what_is_seen_and_is_not_a_number_comes_through() -> None:
    query = random(1, 2, 16, dtype=torch.float32, seed=0)
    kv = random(1, CAPACITY, 4, 16, dtype=torch.float32, seed=1)
    kv[0, 280, 0] = torch.nan  # a key of the first head, in the second part
    out = torch.zeros_like(query)
    kv, new = take_newest(kv, int32([300]))
    cached_attention(query, kv, new, int32([300]), window=None, out_SHd=out)
    assert out[0, 0].isnan().all()
    assert out[0, 1].isfinite().all()


def test_slots_may_be_far_apart() -> None:
    room = random(3, 9, 16, dtype=torch.float32, seed=0)
    new = random(3, 9, 16, dtype=torch.float32, seed=2)[:, 5:]
    kv = random(3, 64, 4, 16, dtype=torch.float32, seed=1)
    wide, close = torch.full_like(room, 7.0), torch.zeros(3, 4, 16, device=DEVICE)
    lengths = int32([3, 64, 9])
    cached_attention(room[:, :4], kv, new, lengths, window=None, out_SHd=wide[:, :4])
    near = room[:, :4].contiguous(), kv, new.contiguous()
    cached_attention(*near, lengths, window=None, out_SHd=close)
    assert torch.equal(wide[:, :4], close)
    assert (wide[:, 4:] == 7).all()
