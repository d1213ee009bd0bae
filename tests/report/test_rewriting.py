from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from fam_engine.report.rewriting import print_rewriting_forecast, print_rewriting_summary


def shown(print_it: Any, values: dict[str, Any]) -> str:  # noqa: ANN401
    console = Console(file=io.StringIO(), width=80)
    print_it(values, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= 80 for line in text.splitlines())
    return text


def source(n: int, rewritten: int, own: float | None = None) -> dict[str, Any]:
    estimate = {"value": rewritten / n, "low": 0.1, "high": 0.9}
    return {
        "n": n,
        "rewritten": rewritten,
        "fell_back": n - rewritten,
        "yield": estimate,
        "similarity": 0.25 if rewritten else None,
        "own_similarity": own,
    }


SUMMARY = {
    "settings": {"method": "rewrite"},
    "records": {"rewritten": 5, "fell_back": 15, "quarantined_by_code": {"E_JSON_SYNTAX": 1}},
    "sources": {"human": source(10, 5), "mo\x1bdel": source(10, 0)},
    "attempts": [
        {"attempt": 0, "candidates": 20, "verified": 4, "tokens": 9},
        {"attempt": 1, "candidates": 16, "verified": 1, "tokens": 9},
    ],
    "rejected": {"wrong_answer": 30, "copy": 1},
    "fell_back": {"wrong_answer": 14, "no_reference": 1},
}


def test_the_yield_is_told_by_source_and_by_attempt() -> None:
    text = shown(print_rewriting_summary, SUMMARY)
    assert "5 of 20 answers rewritten (rewrite); 15 stay as given." in text
    assert "50.0 %" in text
    assert "10.0-90.0" in text
    assert "25.0 %" in text
    assert "another final answer" in text
    assert "no final answer to verify against" in text
    assert "1 records left out: E_JSON_SYNTAX" in text
    assert "\x1b" not in text
    assert "own" not in text


def test_minimum_change_also_tells_how_much_of_the_own_attempt_stayed() -> None:
    changes = {"settings": {"method": "minimum-change"}, "sources": {"human": source(10, 5, 0.8)}}
    text = shown(print_rewriting_summary, {**SUMMARY, **changes})
    assert "80.0 %" in text
    assert "0: own answer" in text


def test_a_forecast_shows_the_prompt_and_what_is_counted() -> None:
    forecast = {
        "num_records": 3,
        "quarantined": {"E_JSON_SYNTAX": 1},
        "unverifiable": 1,
        "gold": 2,
        "prompt": "[Question]\nHow \x1bmany?\n",
        "prompt_tokens": {"mean": 12.5, "max": 15},
        "cramped": 0,
        "candidates": (2, 8),
        "tokens": (1024, 4096),
        "seconds": (30.0, 1200.0),
    }
    console = Console(file=io.StringIO(), width=80)
    print_rewriting_forecast(forecast, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "How \\x1bmany?" in text
    assert "3 records, 1 E_JSON_SYNTAX" in text
    assert "2 candidates if the first are verified, 8 if none is" in text
    assert "about 30 s to 20 min if every text is as long as allowed" in text
