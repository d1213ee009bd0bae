from __future__ import annotations

import math

import numpy as np
import pytest

from fam_engine.jobs.scoring.files import scores_schema
from fam_engine.measure.familiarity import METRICS, averaged, columns_of, ranking_values


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_reads_columns_that_score_writes(name: str) -> None:
    written = set(scores_schema(ifd=True, in_context=True).names)
    assert set(columns_of(METRICS[name])) <= written


def test_only_shares_of_certainty_are_familiar_when_high() -> None:
    highest = {name for name, metric in METRICS.items() if metric.familiar == "highest"}
    assert highest == {"top1_rate", "margin_mean"}


def test_a_perplexity_beyond_float64_still_ranks() -> None:
    columns = {"perplexity": np.array([math.nan, 2.0]), "nll_mean": np.array([800.0, math.log(2)])}
    values = ranking_values(METRICS["perplexity"], columns)
    assert values[0] > values[1]
    parts = averaged(METRICS["perplexity"], columns)
    assert parts.numerators.tolist() == [800.0, math.log(2)]
    assert parts.kind == "geometric mean"


def test_a_set_has_the_ratio_of_summed_ranks_and_losses() -> None:
    columns = {
        "rank_surprisal_ratio": np.array([2.0, 8.0]),
        "rank_mean": np.array([2.0, 4.0]),
        "num_response_tokens": np.array([10.0, 1.0]),
        "nll_sum": np.array([10.0, 0.5]),
    }
    parts = averaged(METRICS["rank_surprisal_ratio"], columns)
    assert parts.numerators.sum() / parts.denominators.sum() == pytest.approx(24 / 10.5)
