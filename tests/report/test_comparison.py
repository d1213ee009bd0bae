from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from fam_engine.measure import sources as by_source
from fam_engine.measure.comparison import Metric, compare_rows
from fam_engine.measure.statistics import Floats
from fam_engine.report.comparison import print_comparison


def printed_comparison(
    sources: list[str], first: Floats, second: Floats, num_unpaired: int = 0
) -> str:
    questions = [str(n) for n in range(len(sources))]
    metrics = [Metric("nll_mean", first, second)]
    runs = [{"path": name, "n": len(sources), "num_repeated": 0} for name in "ab"]
    only = [{"n": 0, "ids": []}] * 2
    unpaired = [{"n": num_unpaired, "ids": ["q0", "q1"][:num_unpaired]}, only[1]]
    rest = {
        "runs": runs,
        "joined": len(sources),
        "only": only,
        "unpaired": unpaired,
        "settings": {},
    }
    output = io.StringIO()
    found = compare_rows(questions, sources, questions, metrics, seed=0)
    print_comparison(found | rest, Console(file=output, width=80))
    return output.getvalue()


def test_no_word_of_a_verdict_is_cut_at_80_columns() -> None:
    sources = ["a_source_with_a_name_beyond_the_column"] * 24
    first = np.linspace(1.0, 9.0, 24)
    second = first + np.where(np.arange(24) % 2, 0.5, -0.5)
    printed = printed_comparison(sources, first, second)
    assert "distinguishable" in printed
    assert "\u2026" not in printed
    assert "fewer than" not in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_difference_of_rounding_is_not_shown_as_zero() -> None:
    first = np.linspace(1.0, 9.0, 24)
    printed = printed_comparison(["one"] * 24, first, first + 4e-6)
    assert "+4e-06  +4e-06 to +4e-06  higher" in printed
    assert "+0.000  +0.000 to +0.000  equal" in printed_comparison(["one"] * 24, first, first)


def test_rows_that_are_not_paired_are_told_in_one_line() -> None:
    values = np.linspace(1.0, 9.0, 24)
    printed = printed_comparison(["one"] * 24, values, values, num_unpaired=3)
    assert "not paired, of A: 3 (q0, q1 ...): their id repeats" in printed
    assert "of B" not in printed
    assert "not paired" not in printed_comparison(["one"] * 24, values, values)


def test_of_many_sources_some_are_shown_and_the_rest_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_source, "MAX_SOURCES", 40)
    sources = [f"https://page/{n}" for n in range(50)] * 6
    first = np.linspace(1.0, 9.0, 300)
    printed = printed_comparison(sources, first, first + 0.5)
    assert "Of 50 sources the 40 with most records have figures of their own" in printed
    table = printed.split("nats a token")[1].split("rank correlation")[0]
    assert table.count("https://") == 30
    assert "and 10 more, see" in table
    (others,) = [line for line in table.splitlines() if "others (10)" in line]
    assert others.split()[2:6] == ["60", "5.535", "6.035", "+0.500"]


def test_a_source_is_no_markup_and_does_not_act() -> None:
    printed = printed_comparison(["[/x]\x1b[2J"] * 2, np.ones(2), np.ones(2))
    assert "[/x]\\x1b[2J" in printed
    assert "\x1b" not in printed
