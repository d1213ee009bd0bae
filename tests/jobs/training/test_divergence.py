from __future__ import annotations

import math

import pytest

from fam_engine.errors import DivergedError
from fam_engine.jobs.training.divergence import WINDOW, DivergenceWatch


def look(
    watch: DivergenceWatch,
    step: int,
    *,
    loss: float = 1.0,
    nll: float = 1.0,
    grad_norm: float = 1.0,
    untrained: float = 3.0,
) -> None:
    watch.check(step, loss=loss, nll=nll, grad_norm=grad_norm, untrained=lambda: untrained)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_number_that_is_none_ends_the_run(name: str, bad: float) -> None:
    with pytest.raises(DivergedError, match=r"step 3.*expected a finite number") as caught:
        look(DivergenceWatch(), 3, **{name: bad})
    assert caught.value.exit_code == 9


def test_a_dead_model_ends_the_run_and_a_step_of_masked_tokens_does_not() -> None:
    watch = DivergenceWatch()
    look(watch, 1, loss=0.0, nll=3.0, grad_norm=0.0)
    with pytest.raises(DivergedError, match="nothing can be learnt"):
        look(watch, 2, loss=5.5, nll=5.5, grad_norm=0.0)


def steps_until_lost(watch: DivergenceWatch, *, nll: float) -> int:
    for step in range(WINDOW):
        try:
            look(watch, step, nll=nll)
        except DivergedError:
            return step
    raise AssertionError


def test_a_run_that_runs_away_ends_and_a_rough_one_does_not() -> None:
    watch = DivergenceWatch()
    for step in range(3 * WINDOW):
        # Single steps may be far off: answers differ.
        look(watch, step, nll=9.0 if step % 7 == 0 else 2.0)
    assert steps_until_lost(watch, nll=9.0) < WINDOW


def test_a_run_that_is_lost_from_the_start_ends_too() -> None:
    watch = DivergenceWatch()
    look(watch, 0, nll=2.0)
    assert steps_until_lost(watch, nll=9.0) == WINDOW - 2


def test_hard_answers_after_easy_ones_do_not_end_a_run() -> None:
    watch = DivergenceWatch()
    for step in range(10 * WINDOW):
        # The untrained model finds them nearly as hard.
        nll = 0.1 if step == 0 or step // WINDOW % 2 else 4.0
        look(watch, step, nll=nll, untrained=3.1)
    assert steps_until_lost(watch, nll=4.2) == WINDOW - 1


def test_a_resumed_watch_sees_what_the_first_saw() -> None:
    first = DivergenceWatch()
    for step in range(WINDOW):
        look(first, step)
    second = DivergenceWatch(first.recent, first.lowest)

    # Mean above 3 + 1: after the step that brings (20 - n) + 6 n above 80.
    assert steps_until_lost(first, nll=6.0) == steps_until_lost(second, nll=6.0) == 12
