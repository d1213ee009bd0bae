"""Rows by source are those a search for each source finds; what is beyond the limit is taken together."""

from __future__ import annotations

import numpy as np
import pytest

from fam_engine.measure import sources
from fam_engine.measure.sources import by_source


def test_rows_are_those_of_each_source_in_order() -> None:
    labels = np.random.default_rng(0).choice(list("dabc"), 200).tolist()
    found = by_source(labels)
    assert list(found.rows) == list(dict.fromkeys(labels))
    for name, rows in found.rows.items():
        assert rows.tolist() == [row for row, label in enumerate(labels) if label == name]
    assert (found.pooled.tolist(), found.num_pooled) == ([], 0)
    assert by_source([]).rows == {}


def test_the_largest_stand_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_SOURCES", 2)
    found = by_source(list("xayabbya"))
    # `b` and `y` are as large; the first of them stays.
    assert {name: rows.tolist() for name, rows in found.rows.items()} == {
        "a": [1, 3, 7],
        "y": [2, 6],
    }
    assert (found.pooled.tolist(), found.num_pooled) == ([0, 4, 5], 2)
