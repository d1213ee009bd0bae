from __future__ import annotations

import math

import pytest

from fam_engine.errors import DivergedError
from fam_engine.jobs.training.divergence import WINDOW, DivergenceWatch


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_number_that_is_none_ends_the_run(name: str, bad: float) -> None:
    good = {"loss": 1.0, "nll": 1.0, "grad_norm": 1.0}
    with pytest.raises(DivergedError, match=r"step 3.*expected a finite number") as caught:
        DivergenceWatch().check(3, **(good | {name: bad}))
    assert caught.value.exit_code == 9


def test_a_dead_model_ends_the_run_and_a_step_of_masked_tokens_does_not() -> None:
    watch = DivergenceWatch()
    watch.check(1, loss=0.0, nll=3.0, grad_norm=0.0)
    with pytest.raises(DivergedError, match="nothing can be learnt"):
        watch.check(2, loss=5.5, nll=5.5, grad_norm=0.0)


def steps_until_lost(watch: DivergenceWatch, *, nll: float) -> int:
    for step in range(WINDOW):
        try:
            watch.check(step, loss=0.1, nll=nll, grad_norm=1.0)
        except DivergedError:
            return step
    raise AssertionError


def test_a_run_that_runs_away_ends_and_a_rough_one_does_not() -> None:
    watch = DivergenceWatch()
    for step in range(3 * WINDOW):
        # Single steps may be far off: answers differ.
        watch.check(step, loss=0.1, nll=9.0 if step % 7 == 0 else 2.0, grad_norm=1.0)
    assert steps_until_lost(watch, nll=9.0) < WINDOW


def test_a_run_that_is_lost_from_the_start_ends_too() -> None:
    watch = DivergenceWatch()
    watch.check(0, loss=1.0, nll=2.0, grad_norm=1.0)
    assert steps_until_lost(watch, nll=9.0) == WINDOW - 2


def test_a_resumed_watch_sees_what_the_first_saw() -> None:
    first = DivergenceWatch()
    for step in range(WINDOW):
        first.check(step, loss=1.0, nll=1.0, grad_norm=1.0)
    second = DivergenceWatch(first.recent, first.lowest)

    # Mean above 2 * 1 + 1: after the step that brings (20 - n) + 5 n above 60.
    assert steps_until_lost(first, nll=5.0) == steps_until_lost(second, nll=5.0) == 10
