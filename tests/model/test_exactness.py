"""Same record, same bits: a record's facts do not depend on what else is in its batch.

Also the reverse: without the two protections (rows on a grid of 64, separate segments for prompt
and response) they would.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from fam_engine.config import Precision
from fam_engine.measure.results import TokenFacts
from fam_engine.model.decoder import Decoder
from fam_engine.model.devices import ComputeDtype
from fam_engine.model.loading import load_model
from fam_engine.model.logprobs import token_facts
from tests.model.conftest import TinyCheckpoint
from tests.model.packing_reference import Entry, pack_reference
from tests.model.plain import facts_of, random_entries

# Prompts and answers of one token, on and around the grid of 64 and the flash kernel's blocks.
LENGTHS = [
    (1, 1),
    (1, 2),
    (2, 7),
    (31, 32),
    (33, 64),
    (64, 65),
    (65, 1),
    (3, 130),
    (90, 20),
    (17, 200),
]
NUMERICS: list[tuple[Precision, ComputeDtype]] = [
    ("fp32", "fp32"),
    ("bf16", "bf16"),
    ("bf16", "fp32"),
    ("nf4", "fp32"),
    ("nf4", "bf16"),
]
# 172: the tail of a row is shorter than any vector; NF4 blocks straddle rows.
SHAPE = {"intermediate_size": 172, "num_hidden_layers": 2}


def same_bits(one: TokenFacts, other: TokenFacts) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("logprobs", "ranks", "entropies", "margins")
    )


def entries_with_siblings() -> list[Entry]:
    entries = random_entries(160, LENGTHS)
    siblings = [(entries[i % 4 + 3][0], answer) for i, (_, answer) in enumerate(entries[1:8])]
    return entries + siblings


@pytest.mark.parametrize(
    ("precision", "compute_dtype", "num_threads"),
    # 3 threads cut loops at uneven places. With 2 on the 2 cores of a small machine the threads wait
    # for each other in busy loops: slow, so few.
    [(*numerics, threads) for numerics in NUMERICS for threads in (1, 3)]
    + [("fp32", "fp32", 2), ("nf4", "bf16", 2)],
)
def test_facts_depend_on_the_record_alone(
    tiny_checkpoint: TinyCheckpoint,
    precision: Precision,
    compute_dtype: ComputeDtype,
    num_threads: int,
) -> None:
    torch.set_num_threads(num_threads)
    folder = tiny_checkpoint("mistral", sliding_window=50, **SHAPE)
    decoder = load_model(folder, precision=precision, compute_dtype=compute_dtype)
    entries = entries_with_siblings()
    together = facts_of(decoder, entries)
    order = np.random.default_rng(1).permutation(len(entries))
    shuffled = facts_of(decoder, [entries[i] for i in order])
    halves = facts_of(decoder, entries[:7]) + facts_of(decoder, entries[7:])
    for index, (entry, facts) in enumerate(zip(entries, together, strict=True)):
        assert same_bits(facts, shuffled[order.tolist().index(index)]), "shuffled"
        assert same_bits(facts, halves[index]), "smaller batches"
        if num_threads != 2 or index % 4 == 0:
            assert same_bits(facts, facts_of(decoder, [entry])[0]), "alone"


@pytest.mark.parametrize(("precision", "compute_dtype"), NUMERICS)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "smollm3"])
def test_every_architecture(
    tiny_checkpoint: TinyCheckpoint,
    model_type: str,
    precision: Precision,
    compute_dtype: ComputeDtype,
) -> None:
    folder = tiny_checkpoint(model_type, **SHAPE)
    decoder = load_model(folder, precision=precision, compute_dtype=compute_dtype)
    entries = entries_with_siblings()
    for entry, facts in zip(entries, facts_of(decoder, entries), strict=True):
        assert same_bits(facts, facts_of(decoder, [entry])[0])


@pytest.mark.parametrize("compute_dtype", ["fp32", "bf16"])
def test_changing_one_record_leaves_the_others(
    tiny_checkpoint: TinyCheckpoint, compute_dtype: ComputeDtype
) -> None:
    decoder = load_model(
        tiny_checkpoint("llama", **SHAPE), precision="nf4", compute_dtype=compute_dtype
    )
    entries = random_entries(160, LENGTHS)
    before = facts_of(decoder, entries)
    for changed in (3, 7):
        others = list(entries)
        (others[changed],) = random_entries(160, [(40, 40)], seed=5)
        after = facts_of(decoder, others)
        for index in range(len(entries)):
            assert same_bits(before[index], after[index]) == (index != changed)


@pytest.mark.parametrize(("precision", "compute_dtype"), [("fp32", "fp32"), ("nf4", "bf16")])
def test_a_needle_among_strangers(
    tiny_checkpoint: TinyCheckpoint, precision: Precision, compute_dtype: ComputeDtype
) -> None:
    """32 records, each at any place among any number of others of any length."""
    decoder = load_model(
        tiny_checkpoint("qwen2", **SHAPE), precision=precision, compute_dtype=compute_dtype
    )
    random = np.random.default_rng(3)

    def strangers(seed: int) -> list[Entry]:
        sizes = random.integers(1, 90, (int(random.integers(1, 16)), 2))
        return random_entries(160, [(int(a), int(b)) for a, b in sizes], seed=seed)

    for number in range(32):
        (needle,) = random_entries(160, [(3 * number + 1, 97 - 3 * number)], seed=number)
        alone = facts_of(decoder, [needle])[0]
        for trial in range(5):
            others = strangers(100 * number + trial)
            place = int(random.integers(0, len(others) + 1))
            found = facts_of(decoder, [*others[:place], needle, *others[place:]])[place]
            assert same_bits(alone, found), (number, trial)


def test_neighbours_with_huge_values_do_not_leak(tiny_checkpoint: TinyCheckpoint) -> None:
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
    healthy: Entry = ([1, 2, 3], [4, 5, 6, 8])
    alone = facts_of(decoder, [healthy])[0]
    with_sick = facts_of(sick, [([poison] * 20, [poison] * 30), healthy, ([1, 2], [poison, 3])])
    assert same_bits(alone, with_sick[1])
    assert np.isnan(with_sick[0].logprobs).all()


def facts_joint(decoder: Decoder, entry: Entry) -> TokenFacts:
    """Score a record as one segment, the way we do not."""
    context, targets = entry
    batch = pack_reference([([*context, *targets[:-1]], targets[-1:])])
    num_rows = len(targets)
    rows = np.zeros(-(-num_rows // 64) * 64, np.int32)
    rows[:num_rows] = np.arange(len(context) - 1, len(context) - 1 + num_rows)
    joint_targets = np.zeros_like(rows)
    joint_targets[:num_rows] = targets
    batch = replace(batch, rows=rows, targets=joint_targets, num_rows=num_rows)
    hidden_RD = decoder.hidden_rows(batch)
    return token_facts(hidden_RD, decoder.weights.head_VD, joint_targets, num_rows=num_rows)


@pytest.mark.parametrize(("precision", "compute_dtype"), [("fp32", "fp32"), ("nf4", "bf16")])
def test_without_the_protections_bits_would_differ(
    tiny_checkpoint: TinyCheckpoint,
    precision: Precision,
    compute_dtype: ComputeDtype,
) -> None:
    decoder = load_model(
        tiny_checkpoint("llama", **SHAPE), precision=precision, compute_dtype=compute_dtype
    )
    entries = random_entries(160, LENGTHS)
    kept = facts_of(decoder, entries)
    off_grid = [facts_of(decoder, [entry], grid=1)[0] for entry in entries]
    joint = [facts_joint(decoder, entry) for entry in entries]
    # In bf16 the grid shows at larger shapes only, see `products`; MKL in strict mode needs none.
    needs_grid = compute_dtype == "fp32" and "STRICT" not in os.environ.get("MKL_CBWR", "")
    assert not needs_grid or not all(map(same_bits, kept, off_grid))
    assert not all(map(same_bits, kept, joint))
    # It is a matter of bits, not of values.
    tolerance = 1e-4 if compute_dtype == "fp32" else 0.3
    for facts, other in zip(kept, joint, strict=True):
        assert np.abs(facts.logprobs - other.logprobs).max() <= tolerance
