"""A batch launched before the results of the one before it are read, as on a GPU, changes no byte.

The CPU computes when it is told to; here it is made to keep results back until they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring import entries as pass_two
from fam_engine.measure.results import TokenFacts
from fam_engine.model.decoder import Decoder
from tests.jobs.scoring.test_job import make_records, score, write
from tests.model.shortages import SHORTAGES

SETTINGS: dict[str, Any] = {"max_tokens_per_batch": 256, "tokens": True}
FILES = ("scores.parquet", "tokens.parquet", "quarantine.jsonl")
Read = Callable[[], list[TokenFacts]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", make_records(24))


@pytest.fixture
def whole(tiny_model: Path, data: Path, tmp_path: Path) -> list[bytes]:
    """Give the files of a job that reads each batch at once."""
    score(tiny_model, data, tmp_path / "whole", **SETTINGS)
    return files(tmp_path / "whole")


def files(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


@pytest.fixture
def events(
    monkeypatch: pytest.MonkeyPatch, whole: list[bytes]
) -> list[tuple[str, tuple[int, ...]]]:
    """Let jobs run ahead from now on; give what is launched and read, in its order."""
    found: list[tuple[str, tuple[int, ...]]] = []
    launch = pass_two.launch_entries

    def noted(decoder: Decoder, spool: Any, entries: pass_two.Entries) -> Read:  # noqa: ANN401
        read = launch(decoder, spool, entries)
        found.append(("launch", tuple(entries.tolist())))

        def noted_read() -> list[TokenFacts]:
            found.append(("read", tuple(entries.tolist())))
            return read()

        return noted_read

    monkeypatch.setattr(pass_two, "launch_entries", noted)
    monkeypatch.setattr(pass_two, "runs_ahead", lambda _: True)
    return found


Events = list[tuple[str, tuple[int, ...]]]


def test_the_next_batch_is_launched_first(
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    whole: list[bytes],
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    land, landed = Journal.land, []

    def noted(journal: Journal, entries: list[int], *, flying: list[int]) -> None:
        landed.append((tuple(entries), tuple(flying)))
        land(journal, entries, flying=flying)

    monkeypatch.setattr(Journal, "land", noted)
    score(tiny_model, data, tmp_path / "out", **SETTINGS)
    assert files(tmp_path / "out") == whole
    launched = [entries for kind, entries in events if kind == "launch"]
    assert len(launched) > 4
    expected: Events = [("launch", launched[0])]
    for before, after in pairwise(launched):
        expected += [("launch", after), ("read", before)]
    assert events == [*expected, ("read", launched[-1])]
    # When a batch has come through, the one behind it is still noted as in flight.
    assert landed == list(zip(launched, [*launched[1:], ()], strict=True))


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_an_interrupted_job_goes_on(
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    whole: list[bytes],
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    batches: int,
) -> None:
    forward, calls = Decoder.hidden_rows, 0

    def interrupted(decoder: Decoder, batch: PackedBatch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > batches:
            raise Interrupted(15)
        return forward(decoder, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "hidden_rows", interrupted)
        with pytest.raises(Interrupted):
            score(tiny_model, data, tmp_path / "out", **SETTINGS)
    kept = sum(kind == "read" for kind, _ in events)
    assert kept == batches - 1
    score(tiny_model, data, tmp_path / "out", **SETTINGS)
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize("limit", [128, 192])
def test_memory_that_runs_out(
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    whole: list[bytes],
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    forward, calls, failures = Decoder.hidden_rows, 0, 0

    def short(decoder: Decoder, batch: PackedBatch) -> torch.Tensor:
        nonlocal calls, failures
        calls += 1
        if len(batch.entries) > 1 and (len(batch.input_ids) > limit or calls % 3 == 0):
            failures += 1
            raise SHORTAGES[failures % len(SHORTAGES)]()
        return forward(decoder, batch)

    monkeypatch.setattr(Decoder, "hidden_rows", short)
    score(tiny_model, data, tmp_path / "out", **SETTINGS)
    assert failures > 2
    assert files(tmp_path / "out") == whole


@pytest.fixture
def flying(monkeypatch: pytest.MonkeyPatch, events: Events) -> list[tuple[int, ...]]:
    """Give the batches launched and not yet read; whenever one is read, all of them must be noted as in flight."""
    found: list[tuple[int, ...]] = []
    launch, journals = pass_two.launch_entries, []
    take_off = Journal.take_off

    def noted_take_off(journal: Journal, entries: list[int]) -> None:
        journals.append(journal)
        take_off(journal, entries)

    def noted(decoder: Decoder, spool: Any, entries: pass_two.Entries) -> Read:  # noqa: ANN401
        read = launch(decoder, spool, entries)
        found.append(tuple(entries.tolist()))

        def noted_read() -> list[TokenFacts]:
            noted_rows = journals[-1].db.execute("SELECT entry FROM in_flight")
            assert {entry for batch in found for entry in batch} <= {row[0] for row in noted_rows}
            found.remove(tuple(entries.tolist()))
            return read()

        return noted_read

    monkeypatch.setattr(Journal, "take_off", noted_take_off)
    monkeypatch.setattr(pass_two, "launch_entries", noted)
    return found


@pytest.mark.parametrize("fails", ["at launch", "when read"])
@pytest.mark.parametrize("fits_alone", [True, False])
def test_a_record_is_left_out_only_if_it_does_not_fit_alone(
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    whole: list[bytes],
    events: Events,
    flying: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    fits_alone: bool,
    fails: str,
) -> None:
    """Of a batch that did not fit, not even as single records; neither does it take the note of others away."""
    score(tiny_model, data, tmp_path / "before", **SETTINGS)
    launch, tries = pass_two.launch_entries, list[tuple[int, int]]()
    # Of the third batch launched, others before and behind it; the record of it that is last to be alone.
    victim = events[3][1][-1 if fails == "at launch" else 0]
    assert [kind for kind, _ in events[:4]] == ["launch", "launch", "read", "launch"]

    def fails_now(entries: pass_two.Entries, others: list[tuple[int, ...]]) -> bool:
        if victim in entries:
            tries.append((len(entries), len(others)))
        return victim in entries and (len(entries) > 1 or bool(others) or not fits_alone)

    def short(decoder: Decoder, spool: Any, entries: pass_two.Entries) -> Read:  # noqa: ANN401
        if fails == "at launch" and fails_now(entries, flying):
            raise SHORTAGES[len(tries) % len(SHORTAGES)]()
        read = launch(decoder, spool, entries)

        def read_or_fail() -> list[TokenFacts]:
            facts = read()
            if fails == "when read" and fails_now(entries, flying):
                raise SHORTAGES[len(tries) % len(SHORTAGES)]()
            return facts

        return read_or_fail

    monkeypatch.setattr(pass_two, "launch_entries", short)
    outcome = score(tiny_model, data, tmp_path / "out", **SETTINGS)
    assert flying == []
    assert tries[-1] == (1, 0)
    assert (1, 1) in tries, events
    if fits_alone:
        assert files(tmp_path / "out") == whole
        return
    assert outcome.summary["records"]["quarantined_by_code"] == {"E_OOM_RECORD": 1}
    assert outcome.summary["records"]["scored"] == 23
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == victim + 1


@pytest.mark.parametrize("place", [0, -1])
def test_a_record_that_kills_the_process_is_found(
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
) -> None:
    """It dies when the results are read, as on a GPU: another batch is in flight then."""
    settings = SETTINGS | {"max_tokens_per_batch": 128}
    score(tiny_model, data, tmp_path / "before", **settings)
    launched = [entries for kind, entries in events if kind == "launch"]
    assert len(launched) > 10
    poison, launch = launched[place][0], pass_two.launch_entries

    def dying(decoder: Decoder, spool: Any, entries: pass_two.Entries) -> Read:  # noqa: ANN401
        read = launch(decoder, spool, entries)

        def read_or_die() -> list[TokenFacts]:
            if poison in entries:
                raise KeyboardInterrupt
            return read()

        return read_or_die

    # As after a kill, the note of what is in flight stays.
    monkeypatch.setattr("fam_engine.jobs.journal.Journal.clear_flight", lambda _: None)
    monkeypatch.setattr(pass_two, "launch_entries", dying)
    deaths, outcome = 0, None
    while outcome is None:
        try:
            outcome = score(tiny_model, data, tmp_path / "out", **settings)
        except KeyboardInterrupt:
            deaths += 1
            assert deaths < 30
    # Two batches are halved until the record is alone; then it dies three times.
    num_suspects = 2 * max(map(len, launched))
    assert deaths <= num_suspects.bit_length() + 3
    assert outcome.summary["records"]["quarantined_by_code"] == {"E_CRASH": 1}
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == poison + 1
    assert outcome.summary["records"]["scored"] == 23


def test_no_finite_number(
    tiny_model: Path, data: Path, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = pass_two.launch_entries

    def poisoned(decoder: Decoder, spool: Any, entries: pass_two.Entries) -> Read:  # noqa: ANN401
        read = launch(decoder, spool, entries)

        def read_poisoned() -> list[TokenFacts]:
            found = read()
            for entry, one in zip(entries, found, strict=True):
                if entry == 7:
                    one.logprobs[0] = np.nan
            return found

        return read_poisoned

    monkeypatch.setattr(pass_two, "launch_entries", poisoned)
    outcome = score(tiny_model, data, tmp_path / "out", **SETTINGS)
    assert outcome.summary["records"]["quarantined_by_code"] == {"E_NONFINITE": 1}
    assert outcome.summary["records"]["scored"] == 23
