"""Attention in one call a layer: its plan by hand, and the decoder with it against the calls of the CPU.

The CPU takes its own path; here it is made to take the GPU's, whose kernel then is the plain reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from fam_engine.config import Precision
from fam_engine.data.packing import NO_PARENT, PackedBatch
from fam_engine.model import ops, varlen_plan
from fam_engine.model.decoder import Decoder
from fam_engine.model.loading import load_model
from fam_engine.model.varlen_plan import Sequences, VarlenPlan, on_device, send
from tests.model.conftest import TinyCheckpoint
from tests.model.packing_reference import Entry, pack_reference
from tests.model.plain import facts_of, random_entries
from tests.model.test_decoder import CASES, entries_with_siblings

CPU = torch.device("cpu")


@pytest.fixture
def one_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give what makes decoders attend in one call a layer from then on."""

    def force() -> None:
        monkeypatch.setattr(ops, "has_varlen_attention", lambda *_: True)

    return force


def records_of(batch: PackedBatch) -> list[list[int]]:
    """Give, for each token, the tokens it sees, first to last."""
    seen = []
    for start, stop, parent in zip(
        batch.cu_seqlens[:-1], batch.cu_seqlens[1:], batch.parents, strict=True
    ):
        prompt = [] if parent == NO_PARENT else list(range(*batch.cu_seqlens[parent : parent + 2]))
        seen += [prompt + list(range(start, token + 1)) for token in range(start, stop)]
    return [[int(token) for token in tokens] for tokens in seen]


def seen_by(calls: list[Sequences]) -> list[list[int]]:
    """Give, for each query, the rows of keys it sees, as the kernel's causal rule has it."""
    seen = []
    for call in calls:
        keys = call.keys
        rows = list(range(keys.start, keys.stop)) if isinstance(keys, slice) else keys.tolist()
        end = 0
        for num_queries, num_keys in zip(call.num_queries, call.num_keys, strict=True):
            end += int(num_keys)
            begin = end - int(num_keys)
            seen += [rows[begin : end - int(num_queries) + i + 1] for i in range(num_queries)]
        assert end == len(rows)
    return seen


def planned(batch: PackedBatch, *, rows_only: bool) -> list[Sequences]:
    if rows_only:
        every = np.ones(len(batch.parents), bool)
        return varlen_plan.plan_sequences(batch, batch.rows, may_join=every)
    tokens = np.arange(len(batch.input_ids), dtype=np.int32)
    own = varlen_plan.has_own_prompt(batch)
    return varlen_plan.plan_sequences(batch, tokens, may_join=own)


# Which of 3 contexts (the last is empty, so it has one target), and how many targets.
RECORDS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=12)


@given(RECORDS, st.sampled_from([1, 8, 10**6]))
@settings(max_examples=150, deadline=None)
def test_every_query_sees_its_record_up_to_itself(
    records: list[tuple[int, int]], keys_per_token: int
) -> None:
    contexts = [[7], [1, 2, 3, 4, 5], [9] * 40, [8, 8]]
    batch = pack_reference([(contexts[which], [3] * length) for which, length in records])
    seen = records_of(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_plan, "KEYS_PER_TOKEN", keys_per_token)
        assert seen_by(planned(batch, rows_only=False)) == seen
        assert seen_by(planned(batch, rows_only=True)) == [seen[row] for row in batch.rows]


def test_records_with_prompts_of_their_own_are_gathered_nowhere() -> None:
    batch = pack_reference(random_entries(100, [(60, 30), (7, 1), (20, 80)]))
    (call,) = planned(batch, rows_only=False)
    assert call.keys == slice(0, len(batch.input_ids))
    # Prompt and response are one sequence; then comes the filling.
    assert call.num_queries.tolist() == call.num_keys.tolist() == [89, 7, 99, 192 + 64 - 195]


def test_siblings_have_their_prompt_gathered() -> None:
    prompt = [5] * 10
    batch = pack_reference(
        [(prompt, [1, 2, 3]), ([6] * 4, [1, 2]), (prompt, [4] * 6), (prompt, [1])]
    )
    (call,) = planned(batch, rows_only=False)
    assert call.num_queries.tolist() == [10, 2, 5, 5, 42]
    assert call.num_keys.tolist() == [10, 12, 5, 15, 42]
    (rows,) = planned(batch, rows_only=True)
    assert rows.num_queries.tolist()[:4] == [3, 2, 6, 1]
    assert rows.num_keys.tolist()[:4] == [12, 5, 15, 10]


def test_a_call_gathers_so_many_keys_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_plan, "KEYS_PER_TOKEN", 2)
    batch = pack_reference([([5] * 50, [n % 7, 1]) for n in range(40)])
    calls = planned(batch, rows_only=True)
    assert len(calls) > 1
    assert all(call.num_keys.sum() <= 2 * len(batch.input_ids) for call in calls)


def test_arrays_arrive_as_they_were_sent() -> None:
    arrays = [np.arange(n, dtype=np.int32) for n in (3, 0, 64, 1)]
    tensors = send(arrays, CPU)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.tolist() == array.tolist()
        assert tensor.numel() == 0 or tensor.data_ptr() % 16 == 0
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


# -- the decoder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_float64_equals_the_calls_a_segment(
    tiny_checkpoint: TinyCheckpoint, one_call: Callable[[], None], case: str
) -> None:
    model_type, overrides = CASES[case]
    decoder = load_model(
        tiny_checkpoint(model_type, **overrides), precision="fp32", compute_dtype="fp64"
    )
    entries = entries_with_siblings(decoder.config.vocab_size)
    expected = facts_of(decoder, entries)
    one_call()
    for one, other in zip(facts_of(decoder, entries), expected, strict=True):
        assert np.abs(one.logprobs - other.logprobs).max() <= 1e-12
        assert np.abs(one.entropies - other.entropies).max() <= 1e-12


def test_several_calls_equal_one(
    tiny_checkpoint: TinyCheckpoint, one_call: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load_model(tiny_checkpoint("llama"), precision="fp32", compute_dtype="fp64")
    entries: list[Entry] = [([5] * 50, [n, 1, n]) for n in range(40)]
    expected = facts_of(decoder, entries)
    one_call()
    monkeypatch.setattr(varlen_plan, "KEYS_PER_TOKEN", 2)
    plan = on_device(pack_reference(entries), CPU).plan
    assert isinstance(plan, VarlenPlan)
    assert min(len(plan.tokens), len(plan.rows)) > 2
    for one, other in zip(facts_of(decoder, entries), expected, strict=True):
        assert np.abs(one.logprobs - other.logprobs).max() <= 1e-12


def test_what_is_not_finite_stays_in_its_record(
    tiny_checkpoint: TinyCheckpoint, one_call: Callable[[], None]
) -> None:
    decoder = load_model(tiny_checkpoint("llama"), precision="fp32", compute_dtype="fp32")
    poison = 7
    embed_VD = decoder.weights.embed_VD.clone()
    embed_VD[poison] = torch.nan
    sick = Decoder(
        decoder.config,
        replace(decoder.weights, embed_VD=embed_VD),
        precision="fp32",
        compute_dtype=torch.float32,
        device=decoder.device,
    )
    prompt = [1, 2, 3]
    # The first sibling is poisoned, and one that predicts by the last row of the prompt alone.
    entries: list[Entry] = [(prompt, [4, poison, 5, 6]), (prompt, [4, 5, 6]), (prompt, [9])]
    one_call()
    healthy = facts_of(decoder, entries)
    found = facts_of(sick, [*entries, ([poison, 2], [1, 2])])
    assert np.isnan(found[0].logprobs).any()
    assert np.isnan(found[3].logprobs).all()
    for index in (1, 2):
        assert np.abs(found[index].logprobs - healthy[index].logprobs).max() <= 1e-6


# -- nothing waits for the device ----------------------------------------------------------------------

# Operations that tell the host something of a tensor's values, or give a result of a size that depends on them.
_WAITING_OPS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
    "equal",
    "is_nonzero",
    "bincount",
    "repeat_interleave.Tensor",
}
_WAITING_METHODS = {
    "tolist",
    "item",
    "numpy",
    "cpu",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
}


class Ops(TorchDispatchMode):
    """Notes operations by which a device would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.count += 1
        name = func.name().removeprefix("aten::")
        if name in _WAITING_OPS or name.split(".")[0] in _WAITING_OPS:
            self.found.append(name)
        if name.startswith("index") and any(_is_mask(part) for part in args):
            self.found.append(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Notes methods that read a CPU tensor without an operation, which on a GPU would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        name = (resolve_name(func) or getattr(func, "__name__", "")).split(".")[-1]
        if name in _WAITING_METHODS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _is_mask(part: object) -> bool:
    parts = part if isinstance(part, list | tuple) else [part]
    return any(isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in parts)


@contextmanager
def watched() -> Iterator[tuple[Ops, Methods]]:
    with Ops() as operations, Methods() as methods:
        yield operations, methods


def test_the_watch_sees_what_waits() -> None:
    x = torch.arange(4.0)
    for wait in (
        lambda: x.max().item(),
        lambda: x.tolist(),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: int(x[2]),
        lambda: bool(x[0] == 0),
        lambda: x.cpu(),
    ):
        with watched() as (operations, methods):
            wait()
        assert operations.found or methods.found


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 17}),
        ("qwen3", {}),
        ("qwen2", {}),
        ("smollm3", {}),
    ],
)
@pytest.mark.parametrize("precision", ["nf4", "fp32"])
def test_nothing_waits_for_the_device(
    tiny_checkpoint: TinyCheckpoint,
    one_call: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    overrides: dict[str, Any],
    precision: Precision,
) -> None:
    decoder = load_model(
        tiny_checkpoint(model_type, **overrides), precision=precision, compute_dtype="fp32"
    )
    batch = pack_reference(entries_with_siblings(decoder.config.vocab_size))
    one_call()
    decoder.hidden_rows(batch)  # tables of the first batch, made once
    calls = []

    def attention(query: torch.Tensor, *_: object, **keywords: object) -> tuple[torch.Tensor, None]:
        # What the plain reference does by itself, flash does not.
        calls.append(keywords)
        return torch.zeros_like(query), None

    monkeypatch.setattr(ops, "varlen_attention", attention)
    with watched() as (operations, methods):
        decoder.hidden_rows(batch)
    assert operations.count > 100
    assert len(calls) == decoder.config.num_layers
    assert operations.found == []
    assert methods.found == []
