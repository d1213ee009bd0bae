"""Metrics against accuracy: who foretold the best variant, and how easily chance would have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fam_engine.measure.foretelling import foretelling, metric_values
from fam_engine.measure.replay import Cell

ACCURACIES = np.array([0.2, 0.4, 0.6, 0.8])


def cell(**metrics: list[float]) -> Cell:
    return Cell("m", "t", ACCURACIES, {name: np.array(values) for name, values in metrics.items()})


def test_a_perfect_metric_and_its_chance() -> None:
    found = foretelling([cell(perplexity=[4, 3, 2, 1], top1_rate=[4, 3, 2, 1])], seed=0)
    assert found is not None
    perplexity, top1 = found["metrics"]["perplexity"], found["metrics"]["top1_rate"]
    assert (perplexity["regret"], perplexity["spearman"]) == (0.0, pytest.approx(1.0))
    assert (perplexity["named_best"], perplexity["p"]) == (1, 1 / 24)
    # Its highest value is the familiar one, so here it points the wrong way.
    assert top1["spearman"] == pytest.approx(-1.0)
    assert (top1["named_best"], top1["p"]) == (0, 1.0)
    assert found["num_variants"] == [4]
    assert found["chance_of_best"] == found["chance_of_all"] == 0.25


def test_a_metric_that_cannot_tell_the_best_from_another_has_not_named_it() -> None:
    """As its regret says, in which ties share the pick."""
    found = foretelling([cell(perplexity=[3, 2, 1, 1], top1_rate=[1, 2, 3, 4])], seed=0)
    assert found is not None
    entries = found["metrics"]
    assert entries["perplexity"]["regret"] == pytest.approx(10)  # points
    assert (entries["perplexity"]["named_best"], entries["top1_rate"]["named_best"]) == (0, 1)


def test_metrics_not_all_cells_have_are_left_out() -> None:
    cells = [cell(perplexity=[1, 2, 3, 4], ifd=[1, 2, 3, 4]), cell(perplexity=[1, 2, 3, 4])]
    found = foretelling(cells, seed=0)
    assert found is not None
    assert set(found["metrics"]) == {"perplexity"}
    assert found["metrics"]["perplexity"]["p"] is None


def test_chance_has_to_name_the_best_in_each_cell() -> None:
    pair = Cell("m", "pair", np.array([0.2, 0.4]), {"perplexity": np.array([2.0, 1.0])})
    found = foretelling([pair, cell(perplexity=[1, 2, 3, 4])], seed=0)
    assert found is not None
    assert (found["chance_of_best"], found["chance_of_all"]) == (0.375, 0.125)


def test_one_variant_foretells_nothing() -> None:
    lonely = Cell("m", "t", np.array([0.5]), {"perplexity": np.array([1.0])})
    assert foretelling([lonely], seed=0) is None


def test_values_of_variants_as_columns() -> None:
    found = metric_values({"a": {"perplexity": 2.0, "ifd": None}, "b": {"perplexity": None}})
    assert set(found) == {"perplexity"}
    assert found["perplexity"][0] == 2.0
    assert math.isnan(found["perplexity"][1])
