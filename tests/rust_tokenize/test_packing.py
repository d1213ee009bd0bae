"""`pack_lengths`: its modes, and what it refuses; the packing itself is tested in Rust."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fam_engine import _rust_tokenize as rt

LENGTHS = Path(__file__).parents[2] / "benchmarks" / "gsm8k_lengths.json"


def gsm8k_lengths(count: int) -> np.ndarray:
    """Lengths of real questions with their answers."""
    lengths = json.loads(LENGTHS.read_text())
    records = np.array(lengths["prompt"]) + np.array(lengths["answer"])
    return np.random.default_rng(0).choice(records, count).astype(np.int64)


@pytest.mark.parametrize(
    ("flags", "least"),
    [({}, 0.998), ({"mode": "windowed"}, 0.997), ({"mode": "windowed", "window": 1000}, 0.997)],
)
def test_packs_of_real_records_are_full(flags: dict[str, object], least: float) -> None:
    lengths = gsm8k_lengths(50_000)
    bins = rt.pack_lengths(lengths, 2048, **flags)
    fills = np.bincount(bins, weights=lengths)
    assert bins.dtype == np.int32
    assert fills.max() <= 2048
    assert fills.mean() / 2048 >= least


def test_the_windowed_default_is_ten_thousand_items() -> None:
    lengths = gsm8k_lengths(30_000)
    default, whole = (
        rt.pack_lengths(lengths, 2048, mode="windowed", window=window) for window in (None, 10_000)
    )
    np.testing.assert_array_equal(default, whole)
    other = rt.pack_lengths(lengths, 2048, mode="windowed", window=9_999)
    assert not np.array_equal(default, other)


def test_in_order_keeps_the_order() -> None:
    bins = rt.pack_lengths(np.array([6, 4, 1, 20, 3]), 10, mode="in-order")
    assert bins.tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"mode": "sorted"}, "`mode` is `sorted`, expected `global`"),
        ({"window": 5}, "goes with mode `windowed`"),
        ({"mode": "in-order", "window": 5}, "goes with mode `windowed`"),
        ({"mode": "windowed", "window": 0}, "window is 0"),
    ],
)
def test_modes_that_make_no_sense_are_refused(flags: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        rt.pack_lengths(np.array([1, 2]), 10, **flags)
