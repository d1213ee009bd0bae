from __future__ import annotations

import time

import pytest

from fam_engine.report.progress import JobProgress


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (90_000, 100_000, 3.0, "90,000/100,000 tokens, 30,000 a second, 0 s left"),
        (24, 100, 10.0, "24/100 tokens, 2.4 a second, 32 s left"),
        (6, 1_000, 60.0, "6/1,000 tokens, 6 a minute, 2.8 h left"),
        (1, 10, 300.0, "1/10 tokens, 0.2 a minute, 45 min left"),
        (5, None, 1.0, "5 tokens, 5.0 a second"),
    ],
)
def test_a_line_of_a_log_says_how_fast_and_how_long_still(
    done: int,
    total: int | None,
    seconds: float,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = JobProgress()
    progress.start("scoring", total, "tokens")
    clock[0] = seconds
    monkeypatch.setattr("fam_engine.report.progress._SECONDS_A_LINE", 0.0)
    progress.advance(done)
    assert capsys.readouterr().err == f"scoring: {text}\n"
