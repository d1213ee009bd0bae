"""Memory that runs out, at any moment and in any pattern, changes no bit of the table."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.model.decoder import Decoder
from tests.jobs.scoring.test_job import make_records, score, write
from tests.model.shortages import SHORTAGES

BUDGET = 512
Forward = Callable[[Decoder, PackedBatch], torch.Tensor]
forward: Forward = Decoder.hidden_rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", make_records(24))


@pytest.fixture
def whole(tiny_model: Path, data: Path, tmp_path: Path) -> bytes:
    """Give the table of an undisturbed job."""
    score(tiny_model, data, tmp_path / "whole", max_tokens_per_batch=BUDGET)
    return (tmp_path / "whole" / "scores.parquet").read_bytes()


def failing_at(call: int) -> tuple[Forward, list[weakref.ref[torch.Tensor]]]:
    """Give a forward that is out of memory at one call, and what it then held."""
    calls = 0
    held: list[weakref.ref[torch.Tensor]] = []

    def fails(decoder: Decoder, batch: PackedBatch) -> torch.Tensor:
        nonlocal calls
        assert not any(reference() is not None for reference in held)
        result = forward(decoder, batch)
        calls += 1
        if calls - 1 == call:
            held.append(weakref.ref(result))
            raise SHORTAGES[call % len(SHORTAGES)]()
        return result

    return fails, held


def test_at_any_one_forward(
    tiny_model: Path, data: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Call after call, those of the report too; what a failed one held is free when the next begins."""
    for call in range(1000):
        fails, held = failing_at(call)
        monkeypatch.setattr(Decoder, "hidden_rows", fails)
        outcome = score(tiny_model, data, tmp_path / str(call), max_tokens_per_batch=BUDGET)
        assert outcome.num_quarantined == 0
        assert (tmp_path / str(call) / "scores.parquet").read_bytes() == whole
        if not held:
            break
    assert call >= 8


@pytest.mark.parametrize("limit", [192, 320])
def test_with_room_for_few_tokens(
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    attempts: list[int] = []
    shortages = cycle(SHORTAGES)

    def short(decoder: Decoder, batch: PackedBatch) -> torch.Tensor:
        attempts.append(len(batch.input_ids))
        if len(batch.input_ids) > limit:
            raise next(shortages)()
        return forward(decoder, batch)

    monkeypatch.setattr(Decoder, "hidden_rows", short)
    outcome = score(tiny_model, data, tmp_path / "out", max_tokens_per_batch=BUDGET)
    assert outcome.num_quarantined == 0
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == whole
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["records"]["scored"] == 24
    # Each failure makes two batches of one, so there are fewer failures than batches that fit.
    failures = sum(size > limit for size in attempts)
    assert 0 < failures < len(attempts) - failures


def test_again_and_again(
    tiny_model: Path, data: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other forward fails, but a record alone is given what it needs."""
    calls = 0

    def moody(decoder: Decoder, batch: PackedBatch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls % 2 and len(batch.entries) > 1:
            raise torch.OutOfMemoryError("injected")
        return forward(decoder, batch)

    monkeypatch.setattr(Decoder, "hidden_rows", moody)
    score(tiny_model, data, tmp_path / "out", max_tokens_per_batch=BUDGET)
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == whole


def test_a_budget_that_is_too_large_is_tried_now_and_then_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 512 tokens 128 fit: halved twice at once, then tried again after so many batches that did fit."""
    data = write(tmp_path / "many.jsonl", make_records(400))
    attempts: list[bool] = []

    def short(decoder: Decoder, batch: PackedBatch) -> torch.Tensor:
        attempts.append(len(batch.input_ids) <= 128)
        if not attempts[-1]:
            raise torch.OutOfMemoryError("injected")
        return forward(decoder, batch)

    monkeypatch.setattr(Decoder, "hidden_rows", short)
    monkeypatch.setattr("fam_engine.jobs.scoring.entries._FITTING_TO_GROW", 16)
    outcome = score(tiny_model, data, tmp_path / "out", max_tokens_per_batch=BUDGET)
    assert outcome.num_quarantined == 0
    num_fitting = sum(attempts)
    assert num_fitting > 40
    # A larger batch is tried at the start, and after 16 that fit; what is left of it may be too large once more.
    assert 2 <= attempts.count(False) <= 2 + 2 * (num_fitting // 16)
    assert True in attempts[:4]
