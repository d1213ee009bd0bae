"""Spool, plan and packed batch as Python sees them: dtypes, round trips, damage, sharing."""

from __future__ import annotations

import errno
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fam_engine import _rust_tokenize as rt

Pair = tuple[list[int], list[int]]
PAIRS: list[Pair] = [([5, 6], [7, 8]), ([9], [1]), ([5, 6], [4, 3, 2]), ([9], [])]


def columns(pairs: list[Pair]) -> dict[str, NDArray[np.generic]]:
    contexts, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {
        "context_ids": np.array(list(chain(*contexts)), np.int32),
        "context_offsets": np.cumsum([0, *map(len, contexts)], dtype=np.int64),
        "target_ids": np.array(list(chain(*targets)), np.int32),
        "target_offsets": np.cumsum([0, *map(len, targets)], dtype=np.int64),
        "num_eot": np.array([min(1, len(target)) for target in targets], np.int32),
        "variant": np.zeros(len(pairs), np.uint8),
        "record": np.arange(len(pairs), dtype=np.uint32),
    }


def write_spool(folder: Path, pairs: list[Pair]) -> rt.Spool:
    writer = rt.SpoolWriter(folder)
    writer.append(**columns(pairs))  # type: ignore[arg-type]
    writer.finish()
    return rt.Spool.open(folder)


def test_entries_and_index_come_back(tmp_path: Path) -> None:
    spool = write_spool(tmp_path / "new" / "spool", PAIRS)
    assert len(spool) == len(PAIRS)
    for number, (context, target) in enumerate(PAIRS):
        found_context, found_target = spool.read(number)
        assert found_context.dtype == found_target.dtype == np.int32
        assert (found_context.tolist(), found_target.tolist()) == (context, target)
    index = spool.index()
    types = {name: str(column.dtype) for name, column in index.items()}  # type: ignore[attr-defined]
    assert types == {
        "context_len": "uint32",
        "target_len": "uint32",
        "num_eot": "uint8",
        "variant": "uint8",
        "record": "uint32",
        "context_hash": "uint64",
    }
    assert index["context_len"].tolist() == [2, 1, 2, 1]
    assert index["target_len"].tolist() == [2, 1, 3, 0]
    assert index["num_eot"].tolist() == [1, 1, 1, 0]
    hashes = index["context_hash"]
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]
    assert (tmp_path / "new/spool/index.bin").stat().st_size == 40 + 32 * len(PAIRS)
    with pytest.raises(ValueError, match="entry 4"):
        spool.read(4)


def test_an_unfinished_spool_is_none(tmp_path: Path) -> None:
    with pytest.raises(rt.SpoolError, match="no finished spool"):
        rt.Spool.open(tmp_path)
    write_spool(tmp_path, PAIRS)
    rt.SpoolWriter(tmp_path).append(**columns(PAIRS))  # type: ignore[arg-type]
    with pytest.raises(rt.SpoolError, match="no finished spool"):
        rt.Spool.open(tmp_path)


@pytest.mark.parametrize("name", ["index.bin", "data.bin"])
def test_damage_is_noticed(tmp_path: Path, name: str) -> None:
    spool = write_spool(tmp_path, PAIRS)
    path = tmp_path / name
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    with pytest.raises(rt.SpoolError):
        rt.Spool.open(tmp_path)
    if name == "data.bin":
        with pytest.raises(rt.SpoolError, match="cut short"):
            spool.read(3)  # open while its file shrank
    path.write_bytes(sound[:9] + bytes([sound[9] ^ 1]) + sound[10:])
    with pytest.raises(rt.SpoolError):
        rt.Spool.open(tmp_path).read(0)


def test_bad_columns_are_refused(tmp_path: Path) -> None:
    writer = rt.SpoolWriter(tmp_path)
    good = columns(PAIRS)
    bad: list[tuple[str, NDArray[np.generic], type[Exception]]] = [
        ("context_ids", good["context_ids"].astype(np.int64), TypeError),
        ("context_ids", good["context_ids"][:-1], ValueError),
        ("context_ids", np.repeat(good["context_ids"], 2)[::2], ValueError),  # has gaps
        ("target_offsets", good["target_offsets"][::-1].copy(), ValueError),
        ("num_eot", np.array([300, 0, 0, 0], np.int32), ValueError),
        ("num_eot", np.array([1.0, 1.0, 1.0, 0.0]), TypeError),
        ("record", good["record"][:-1], ValueError),
    ]
    for name, column, error in bad:
        with pytest.raises(error):
            writer.append(**(good | {name: column}))  # type: ignore[arg-type]
    writer.append(**(good | {"num_eot": good["num_eot"].astype(np.uint8)}))  # type: ignore[arg-type]
    writer.finish()
    assert len(rt.Spool.open(tmp_path)) == len(PAIRS)
    with pytest.raises(rt.SpoolError):
        writer.append(**good)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_oserror_and_leaves_no_spool(tmp_path: Path) -> None:
    (tmp_path / "data.bin").symlink_to("/dev/full")
    writer = rt.SpoolWriter(tmp_path)
    writer.append(**columns(PAIRS))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="No space left") as caught:
        writer.finish()
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(rt.SpoolError, match="a write failed"):
        writer.append(**columns(PAIRS))  # type: ignore[arg-type]
    with pytest.raises(rt.SpoolError, match="no finished spool"):
        rt.Spool.open(tmp_path)


def test_a_known_batch(tmp_path: Path) -> None:
    spool = write_spool(tmp_path, PAIRS)
    batch = rt.pack_batch(spool, np.array([0, 1, 2, 3]))
    integers = {"input_ids", "position_ids", "cu_seqlens", "parents", "rows", "targets"}
    assert all(batch[name].dtype == np.int32 for name in integers)  # type: ignore[literal-required]
    assert batch["entry_rows"].dtype == batch["entries"].dtype == np.int64
    assert batch["input_ids"].shape == batch["position_ids"].shape == (64,)
    assert batch["input_ids"][:6].tolist() == [5, 6, 7, 4, 3, 9]
    assert batch["position_ids"][:8].tolist() == [0, 1, 2, 2, 3, 0, 0, 1]
    assert batch["cu_seqlens"].tolist() == [0, 2, 3, 5, 6, 64]
    assert batch["parents"].tolist() == [-1, 0, 0, -1, -1]
    assert batch["num_rows"] == 6
    assert batch["rows"].tolist() == [1, 2, 5, 1, 3, 4] + [0] * 58
    assert batch["targets"].tolist() == [7, 8, 1, 4, 3, 2] + [0] * 58
    assert batch["entry_rows"].tolist() == [0, 2, 3, 6, 6]
    assert batch["entries"].tolist() == [0, 1, 2, 3]


IDS = st.lists(st.integers(0, 3), max_size=12)
ENTRIES = st.lists(st.tuples(IDS.map(lambda ids: [1, *ids]), IDS), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.sampled_from([1, 15, 40, 1000]))
def test_every_entry_is_planned_and_predicted_once(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair], max_tokens: int
) -> None:
    spool = write_spool(tmp_path_factory.mktemp("spool"), pairs)
    everything = np.arange(len(pairs))
    plan = rt.plan_batches(spool, everything, max_tokens=max_tokens)
    assert plan.total_tokens <= plan.tokens_without_sharing
    done: list[int] = []
    for number in range(plan.num_batches):
        entries = plan.batch_entries(number)
        prompts = {tuple(pairs[entry][0]) for entry in entries}
        size = sum(map(len, prompts)) + sum(max(len(pairs[entry][1]) - 1, 0) for entry in entries)
        num_targets = sum(len(pairs[entry][1]) for entry in entries)
        assert max(size, num_targets) <= max_tokens or len(entries) == 1
        batch = rt.pack_batch(spool, entries)
        for member, entry in enumerate(entries):
            start, stop = batch["entry_rows"][member : member + 2]
            assert batch["targets"][start:stop].tolist() == pairs[entry][1]
            positions = batch["position_ids"][batch["rows"][start:stop]]
            first = len(pairs[entry][0]) - 1
            assert positions.tolist() == list(range(first, first + stop - start))
        done.extend(entries.tolist())
    assert sorted(done) == everything.tolist()


def test_plans_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    spool = write_spool(tmp_path, PAIRS)
    for entries, max_tokens in ([0, 0], 10), ([4], 10), ([-1], 10), ([0], 0):
        with pytest.raises(ValueError, match=r"expected|out of range"):
            rt.plan_batches(spool, np.array(entries), max_tokens=max_tokens)
    with pytest.raises(ValueError, match="batch 1"):
        rt.plan_batches(spool, np.array([0]), max_tokens=10).batch_entries(1)
    with pytest.raises(ValueError, match="no entries"):
        rt.pack_batch(spool, np.array([], np.int64))


def test_bins_are_full_and_the_same_every_time() -> None:
    """Lengths shaped like question-and-answer records: at least 99.8 % full."""
    lengths = np.random.default_rng(0).gamma(4.0, 45.0, 50_000).astype(np.int64) + 20
    bins = rt.pack_lengths(lengths, 2048)
    assert bins.dtype == np.int32
    fills = np.bincount(bins, weights=lengths)
    assert fills.max() <= 2048
    assert fills.mean() / 2048 >= 0.998
    np.testing.assert_array_equal(bins, rt.pack_lengths(lengths, 2048))
    with pytest.raises(ValueError, match=r"lengths\[0\]"):
        rt.pack_lengths(np.array([-1]), 10)
