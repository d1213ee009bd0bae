from __future__ import annotations

import io
from typing import Any

import numpy as np
from rich.console import Console

from fam_engine.measure.replay import Cell, judge_metrics
from fam_engine.report.replay import print_replay


def judged(num_tasks: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    cells = []
    for task in range(num_tasks):
        accuracies = generator.uniform(0.2, 0.8, 4)
        metrics = {"perplexity": -accuracies, "noise\x1b": generator.uniform(size=4)}
        cells.append(Cell("m", f"t{task}", accuracies, metrics))
    return judge_metrics(cells, {"perplexity": "lowest", "noise\x1b": "highest"})


def printed(result: dict[str, Any]) -> str:
    file = io.StringIO()
    print_replay(result, Console(file=file, width=80))
    return file.getvalue()


def test_metrics_are_ranked_and_said_to_beat_random_or_not() -> None:
    result = judged(25) | {
        "rule": "the rule",
        "without_boolq": judged(8),
        "plan_bench": judged(5),
        "left_out": {"without_accuracy": 4, "without_x": 0},
        "ignored_columns": ["acc_s0"],
    }
    text = printed(result)
    whole = " ".join(text.split())
    assert text.index("perplexity") < text.index("noise")
    assert "perplexity loses least. Better than random: perplexity." in whole
    assert whole.count("the intervals are rather too narrow") == 1
    assert whole.count("Fewer than 6 tasks tell nothing from chance") == 1
    assert "The same without BoolQ" in whole
    assert "Left out: 4 lines without accuracy. Not judged: acc_s0." in whole
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_one_task_has_no_interval() -> None:
    text = printed(judged(1) | {"rule": "r", "left_out": {}, "ignored_columns": []})
    assert "too few tasks" in text
    assert "Better than random: none." in text
