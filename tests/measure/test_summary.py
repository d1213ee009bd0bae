"""What `summary.json` says, from columns to verdicts."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from fam_engine.measure import sources
from fam_engine.measure.summary import summarize


def make_columns(
    shifts: dict[str, float], num_questions: int, *, seed: int = 0
) -> dict[str, list[Any]]:
    """Answers of several sources to the same questions, each source shifted by some nats."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(1.5, 0.3, num_questions)
    columns: dict[str, list[Any]] = {name: [] for name in ("source", "group", "flags", "correct")}
    numbers: dict[str, list[float]] = {
        name: [] for name in ("nll_sum", "nll_mean", "perplexity", "num_response_tokens")
    }
    for source, shift in shifts.items():
        for question in range(num_questions):
            tokens = int(generator.integers(5, 200))
            nll = float(hard[question] + shift + generator.normal(scale=0.05))
            columns["source"].append(source)
            columns["group"].append(f"q{question}")
            columns["flags"].append(["boundary_merged"] if question % 10 == 0 else [])
            columns["correct"].append(question % 4 != 0)
            row = (nll * tokens, nll, math.exp(nll), tokens)
            for name, value in zip(numbers, row, strict=True):
                numbers[name].append(value)
    return columns | numbers


def test_averages_by_hand() -> None:
    columns = {
        "source": ["a", "a"],
        "group": ["x", "y"],
        "nll_sum": [math.log(2) * 1, math.log(8) * 3],
        "nll_mean": [math.log(2), math.log(8)],
        "perplexity": [2.0, 8.0],
        "num_response_tokens": [1, 3],
        "rank_mean": [1.0, 3.0],
        "surprising_rate": [0.0, 1.0],
        "correct": [True, None],
        "flags": [["cut"], None],
        "ifd": [0.5, 2.0],
        "in_context_nll_mean": [math.log(3), None],
    }
    entry = summarize(columns, seed=0)["sources"]["a"]
    values = {name: estimate["value"] for name, estimate in entry["perplexity"].items()}
    assert values == {
        "mean": pytest.approx(5.0),
        "median": pytest.approx(5.0),
        "geometric_mean": pytest.approx(4.0),
        "token_weighted": pytest.approx(2 ** (10 / 4)),
    }
    assert entry["rank_surprisal_ratio"]["value"] == pytest.approx(10 / (10 * math.log(2)))
    assert entry["surprising_rate"]["value"] == pytest.approx(0.75)
    assert entry["ifd"]["value"] == pytest.approx(1.0)
    assert entry["in_context_perplexity"]["value"] == pytest.approx(3.0)
    assert entry["correct"]["n"] == 1
    assert entry["correct"]["share"] == {"value": 1.0, "low": None, "high": None}
    assert entry["correct"]["perplexity_wrong"]["value"] is None
    assert entry["flags"] == {"cut": 1}
    assert (entry["n"], entry["num_groups"], entry["num_response_tokens"]) == (2, 2, 4)


def test_what_was_not_asked_for_is_none() -> None:
    columns = make_columns({"a": 0.0, "b": 0.1}, 5)
    columns["ifd"] = [0.7] * 5 + [None] * 5
    found = summarize(columns, seed=0)
    assert found["overall"]["in_context_perplexity"] is None
    assert found["overall"]["ifd"]["value"] == pytest.approx(0.7)
    assert found["sources"]["b"]["ifd"] is None


def test_a_share_of_all_or_none_has_an_interval() -> None:
    columns = make_columns({"a": 0.0}, 40)
    columns["correct"] = [True] * 40
    correct = summarize(columns, seed=0)["sources"]["a"]["correct"]
    assert (correct["n"], correct["num_correct"]) == (40, 40)
    # Wilson's interval of 40 of 40, from Brown, Cai and DasGupta 2001: n / (n + z^2).
    assert correct["share"] == {
        "value": 1.0,
        "low": pytest.approx(40 / (40 + 1.96**2), abs=1e-4),
        "high": 1.0,
    }


def test_verdicts() -> None:
    columns = make_columns({"low": 0.0, "same": 0.0, "high": 0.2}, 60)
    comparison = summarize(columns, seed=0)["comparison"]
    pairs = {pair["source"]: pair for pair in comparison["pairs"]}
    assert comparison["reference"] in {"low", "same"}
    assert pairs["high"]["verdict"] == "less familiar"
    assert pairs["high"]["difference"]["low"] == pytest.approx(0.2, abs=0.05)
    assert pairs["high"]["num_groups"] == 60
    assert {pair["verdict"] for pair in pairs.values()} == {"less familiar", "not distinguishable"}


def test_other_questions_are_not_compared() -> None:
    columns = make_columns({"a": 0.0, "b": 1.0}, 20)
    columns["group"] = [f"{s}{g}" for s, g in zip(columns["source"], columns["group"], strict=True)]
    (pair,) = summarize(columns, seed=0)["comparison"]["pairs"]
    assert pair["verdict"] == "no shared questions"
    assert pair["difference"]["value"] is None


def test_same_seed_same_summary_as_lists_or_arrays() -> None:
    columns = make_columns({"a": 0.0, "b": 0.3}, 30)
    arrays = {
        name: np.array(values, dtype=object if name == "flags" else None)
        for name, values in columns.items()
    }
    first = json.dumps(summarize(columns, seed=3), allow_nan=False)
    assert first == json.dumps(summarize(columns, seed=3), allow_nan=False)
    assert json.loads(first) == summarize(arrays, seed=3)


def test_a_source_keeps_its_intervals_in_other_company() -> None:
    alone = summarize(make_columns({"a": 0.0}, 30), seed=3)
    together = summarize(make_columns({"a": 0.0, "b": 0.3}, 30), seed=3)
    assert alone["sources"]["a"] == together["sources"]["a"]
    assert alone["overall"] == alone["sources"]["a"]
    assert alone["comparison"] is None


def test_of_many_sources_the_smallest_are_summarized_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = make_columns({"a": 0.0, "b": 0.3, "c": 0.1, "d": 0.2}, 30)
    whole = summarize(columns, seed=3)
    assert "pooled" not in whole
    columns["source"][0] = columns["source"][30] = "c"
    monkeypatch.setattr(sources, "MAX_SOURCES", 2)
    found = summarize(columns, seed=3)
    assert list(found["sources"]) == ["c", "d"]
    assert found["sources"]["d"] == whole["sources"]["d"]
    assert found["overall"] == whole["overall"]
    pooled = found["pooled"]
    assert (pooled["num_sources"], pooled["n"], pooled["num_groups"]) == (2, 58, 29)
    assert pooled["perplexity"].keys() == whole["overall"]["perplexity"].keys()
    assert [pair["source"] for pair in found["comparison"]["pairs"]] == ["d"]


def test_one_record_and_undefined_values() -> None:
    columns: dict[str, list[Any]] = {
        "source": ["a", "a"],
        "nll_sum": [None, 800.0],
        "nll_mean": [None, 800.0],
        "perplexity": [None, None],
        "num_response_tokens": [0, 1],
    }
    summary = summarize(columns, seed=0)
    json.dumps(summary, allow_nan=False)
    entry = summary["overall"]
    assert (entry["n"], entry["num_scored"]) == (2, 1)
    assert entry["correct"] is None
    nothing = {"value": None, "low": None, "high": None}
    assert entry["perplexity"]["mean"] == entry["perplexity"]["median"] == nothing


def test_no_records() -> None:
    names = ("source", "group", "nll_sum", "nll_mean", "perplexity", "num_response_tokens")
    summary = summarize({name: [] for name in names}, seed=0)
    assert summary["overall"]["n"] == 0
    assert summary["sources"] == {}
