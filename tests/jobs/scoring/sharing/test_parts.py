from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fam_engine._rust_tokenize import Spool
from fam_engine.jobs.scoring.sharing import parts
from fam_engine.jobs.scoring.sharing.parts import divide, read_plan, write_plan
from fam_engine.jobs.scoring.spooling import EntryWriter


def spooled(folder: Path, entries: list[tuple[int, int, int]]) -> Spool:
    """A spool of entries (prompt, prompt tokens, response tokens)."""
    writer = EntryWriter(folder, durable=False)
    for number, (prompt, num_context, num_target) in enumerate(entries):
        context = np.full(num_context, prompt, np.int32)
        writer.add((number, 0), context, np.ones(num_target, np.int32))
    writer.finish()
    return Spool.open(folder)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_FEWEST_TOKENS", 100)


@pytest.mark.usefixtures("small_parts")
def test_parts_hold_every_entry_once_in_runs_of_so_many_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    entries = [(int(rng.integers(40)), 10, int(rng.integers(1, 40))) for _ in range(200)]
    ordered, offsets = divide(spooled(tmp_path, entries), np.arange(200))
    assert sorted(ordered.tolist()) == list(range(200))
    assert (offsets[0], offsets[-1]) == (0, 200)
    sizes = []
    for start, stop in pairwise(offsets):
        assert start < stop
        prompts = {entries[entry][0] for entry in ordered[start:stop]}
        sizes.append(sum(entries[entry][2] for entry in ordered[start:stop]) + 10 * len(prompts))
    assert len(sizes) > 20
    # What begins in a part belongs to it: the last entry may reach over, and a prompt that is cut is there twice.
    assert max(sizes) <= 100 + 50 + 10
    # Of the entries with the same prompt all are neighbours, so at most as many prompts are cut as there are parts.
    runs = [entries[entry][0] for entry in ordered]
    num_changes = sum(left != right for left, right in pairwise(runs))
    assert num_changes + 1 == len(set(runs))


@pytest.mark.usefixtures("small_parts")
def test_a_prompt_with_too_many_answers_is_cut(tmp_path: Path) -> None:
    ordered, offsets = divide(spooled(tmp_path, [(1, 30, 10)] * 100), np.arange(100))
    assert ordered.tolist() == list(range(100))
    assert len(offsets) - 1 == 11  # 30 + 100 * 10 tokens


@pytest.mark.usefixtures("small_parts")
def test_an_entry_longer_than_a_part_is_one(tmp_path: Path) -> None:
    _, offsets = divide(spooled(tmp_path, [(n, 10, 500) for n in range(4)]), np.arange(4))
    assert offsets == [0, 1, 2, 3, 4]


def test_of_some_entries_and_of_none(tmp_path: Path) -> None:
    spool = spooled(tmp_path, [(n, 10, 10) for n in range(10)])
    some = np.array([1, 4, 7])
    assert divide(spool, some)[0].tolist() == [1, 4, 7]
    assert divide(spool, some[:0])[1] == [0]


def test_a_large_job_has_a_number_of_parts_that_many_workers_share(tmp_path: Path) -> None:
    spool = spooled(tmp_path, [(n, 500, 500) for n in range(1000)])
    assert 120 <= len(divide(spool, np.arange(1000))[1]) - 1 <= 140


@pytest.mark.usefixtures("small_parts")
def test_a_plan_reads_back_and_shards_take_every_part_once(tmp_path: Path) -> None:
    spool = spooled(tmp_path / "spool", [(n, 10, 30) for n in range(50)])
    assert read_plan(tmp_path) is None
    write_plan(tmp_path, spool, np.arange(50), {"a": 1}, [["x.jsonl", 10]])
    plan = read_plan(tmp_path)
    assert plan is not None
    assert (plan.key, plan.files) == ({"a": 1}, [["x.jsonl", 10]])
    found = np.concatenate([plan.entries(name) for name in plan.names()])
    assert found.tolist() == list(range(50))
    for num_shards in (1, 3, 7, 100):
        shards = [plan.names(f"{i}/{num_shards}") for i in range(1, num_shards + 1)]
        assert sorted(name for shard in shards for name in shard) == plan.names()
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
