from __future__ import annotations

import pytest

from fam_engine.measure.timing import Timing, judge_change, slower


def timing(*seconds: float) -> Timing:
    return Timing(seconds, first_seconds=9.0, amount=100, unit="tokens", peak_bytes=1)


def test_one_slow_run_does_not_change_the_speed() -> None:
    assert timing(2.0, 2.0, 2.0, 2.0, 60.0).rate() == 50.0
    assert timing(1.0, 2.0, 3.0, 4.0, 5.0, 6.0).spread() == pytest.approx((2.0, 5.0))


@pytest.mark.parametrize(
    ("now", "verdict"),
    [(89.9, "slower"), (90.1, "within the limit"), (111.0, "within the limit"), (112.0, "faster")],
)
def test_a_change_is_judged_by_what_is_allowed(now: float, verdict: str) -> None:
    change = judge_change("score", 100.0, now, max_slowdown=0.1)
    assert change.verdict == verdict
    assert change.ratio == pytest.approx(now / 100)
    assert slower([change]) == ([change] if verdict == "slower" else [])
