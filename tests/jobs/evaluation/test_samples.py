"""Rows of `samples.parquet` where an option is chosen by log-prob."""

from __future__ import annotations

import json

import pytest

from fam_engine.jobs.evaluation import samples


@pytest.mark.parametrize(
    ("sums", "right"), [([3.0, 2.0, 1.0], True), ([1.0, 2.0, 3.0], True), ([2.0, 1.0, 3.0], False)]
)
def test_options_of_one_text_are_one_option(sums: list[float], *, right: bool) -> None:
    known = {
        "choices": json.dumps(["park", "city", "Park"]),
        "gold": 0,
        "nll_sums": json.dumps(sums),
    }
    names = (
        *("position", "id", "file", "line", "task", "kind", "asked", "prompt", "answer"),
        *("extracted", "reason", "finish_reason", "num_prompt_tokens", "code"),
    )
    sample = samples._scored({**dict.fromkeys(names), **known}, "acc")
    assert (sample.correct, sample.correct_acc) == (right, right)
    assert sample.reason == ("the gold option" if right else "another option")
