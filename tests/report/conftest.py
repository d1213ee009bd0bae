"""Made-up scores of several sources, and the report on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fam_engine.measure.summary import summarize
from fam_engine.report.examples import Example, pick_examples
from fam_engine.report.html import ReportData

Columns = dict[str, list[Any]]


def _columns(names: list[str], num_questions: int) -> Columns:
    generator = np.random.default_rng(0)
    count = len(names) * num_questions
    tokens = generator.integers(8, 300, count)
    nll = generator.lognormal(0.0, 0.5, count) + np.repeat(np.arange(len(names)), num_questions)
    return {
        "source": [name for name in names for _ in range(num_questions)],
        "group": [f"q{question}" for _ in names for question in range(num_questions)],
        "nll_sum": (nll * tokens).tolist(),
        "nll_mean": nll.tolist(),
        "perplexity": np.exp(nll).tolist(),
        "bits_per_byte": (nll / 3).tolist(),
        "num_response_tokens": tokens.tolist(),
        "correct": (generator.random(count) < 0.7).tolist(),
        "flags": [["boundary_merged"] if row % 7 == 0 else [] for row in range(count)],
    }


@pytest.fixture
def make_columns() -> Callable[[list[str], int], Columns]:
    return _columns


@pytest.fixture
def make_data() -> Callable[..., ReportData]:
    def make(columns: Columns, text: str = " word", **more: object) -> ReportData:
        nll = np.array(columns["nll_mean"], np.float64)
        tokens = np.array(columns["num_response_tokens"], np.int64)
        most, least = (
            [
                Example(
                    id=f"{columns['source'][row]}:{row}",
                    source=columns["source"][row],
                    prompt=text,
                    tokens=[text, "\n", " end"],
                    logprobs=[-0.01, -3.0, -9.0],
                    ranks=[1, 7, 100],
                    perplexity=columns["perplexity"][row],
                )
                for row in rows
            ]
            for rows in pick_examples(nll, tokens)
        )
        return ReportData(
            **{
                "title": "a model",
                "summary": summarize(columns, seed=0),
                "sources": columns["source"],
                "nll_mean": nll,
                "num_response_tokens": tokens,
                "most_familiar": most,
                "least_familiar": least,
                **more,
            }
        )

    return make
