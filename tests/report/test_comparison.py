from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from fam_engine.measure.comparison import Metric, compare_rows
from fam_engine.report.comparison import print_comparison


def test_no_word_of_a_verdict_is_cut_at_80_columns() -> None:
    sources = ["a_source_with_a_name_beyond_the_column"] * 24
    first = np.linspace(1.0, 9.0, 24)
    second = first + np.where(np.arange(24) % 2, 0.5, -0.5)
    questions = [str(n) for n in range(24)]
    found = compare_rows(questions, sources, questions, [Metric("nll_mean", first, second)], seed=0)
    runs = [{"path": name, "n": 24, "num_repeated": 0} for name in "ab"]
    same = {"runs": runs, "joined": 24, "only": [{"n": 0, "ids": []}] * 2, "settings": {}}
    output = io.StringIO()
    print_comparison(found | same, Console(file=output, width=80))
    printed = output.getvalue()
    assert "distinguishable" in printed
    assert "\u2026" not in printed
    assert "fewer than" not in printed
    assert max(map(len, printed.splitlines())) <= 80
