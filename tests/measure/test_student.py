"""Student's quantiles are those of printed tables; percentiles of a bootstrap follow from them."""

from __future__ import annotations

import pytest

from fam_engine.measure.student import bootstrap_percentiles, student_quantile


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # From printed tables of Student's distribution, two-sided 95 %.
    [(1, 12.7062), (2, 4.30265), (5, 2.57058), (10, 2.22814), (30, 2.04227)],
)
def test_student_quantiles(degrees: float, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, rel=1e-5)


def test_many_degrees_are_normal() -> None:
    assert student_quantile(1e9) == pytest.approx(1.95996, abs=3e-3)


def test_percentiles_of_few_draws_lie_further_out() -> None:
    # sqrt(6 / 5) * 2.57058 standard deviations, from a printed table of the normal distribution.
    assert bootstrap_percentiles(6) == (
        pytest.approx(0.00243, abs=1e-5),
        pytest.approx(0.99757, abs=1e-5),
    )
    assert bootstrap_percentiles(2000)[0] == pytest.approx(0.025, abs=3e-4)
