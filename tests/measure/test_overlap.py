"""Test questions among training questions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fam_engine.measure.overlap import find_overlap, normalised_words, run_fingerprints

LONG = " ".join(f"word{i}" for i in range(45))


def test_same_words_are_the_same_question() -> None:
    overlap = find_overlap(
        ["What is 2 + 2?", LONG], ["what is 2+2", "What is 2 + 3?", LONG.upper() + "!", "", "?"]
    )
    assert (overlap.num_test, overlap.same, overlap.similar, overlap.count) == (5, (0, 2), (), 2)


def test_a_changed_word_in_a_long_question_is_found() -> None:
    changed = LONG.replace("word22", "other")
    half = " ".join(LONG.split()[:22] + [f"new{i}" for i in range(23)])
    overlap = find_overlap([LONG], [changed, half, f"Please answer. {LONG}"])
    assert (overlap.same, overlap.similar) == ((), (0, 2))


def test_nothing_to_compare() -> None:
    assert find_overlap([], [LONG, "short"]).count == 0
    assert find_overlap(["", "?"], [LONG, ""]).count == 0
    assert find_overlap([LONG], []).num_test == 0


def test_fingerprints_do_not_depend_on_the_process() -> None:
    runs = run_fingerprints(normalised_words(LONG))
    assert runs.dtype == np.uint64
    assert len(runs) == 45 - 13 + 1
    assert int(runs[0]) == 18350848143127519196
    assert len(run_fingerprints(["a"] * 12)) == 0


def questions(file: Path) -> list[str]:
    if file.suffix == ".json":
        return [row["question"] for row in json.loads(file.read_text())]
    return [json.loads(line)["question"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("task", "suffix", "count"), [("boolq", "json", 1000), ("gsm8k", "jsonl", 0)]
)
def test_known_data(shared: Path, task: str, suffix: str, count: int) -> None:
    folder = shared / "data" / task
    overlap = find_overlap(
        questions(folder / f"train.{suffix}"), questions(folder / f"test.{suffix}")
    )
    assert overlap.count == len(overlap.same) == count
