"""`report.html` of an evaluation: picks the questions to show and hands all to the report.

In: the summary and all samples. Out: the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fam_engine.data.files import write_text_whole
from fam_engine.jobs.evaluation.samples import Sample
from fam_engine.report.evaluation_page import EvalReport, Shown, render_evaluation

_A_TASK: Final = 2
_MOST: Final = 24


def write_eval_report(
    path: Path, summary: dict[str, Any], models: Mapping[str, Sequence[Sample]]
) -> None:
    """Write the report.

    Args:
        path: Where to.
        summary: What `summary.json` holds.
        models: Name -> its samples, in the order of the questions.
    """
    name = Path(summary["settings"]["model"]).name
    data = EvalReport(f"How much does {name} get right?", summary, pick_questions(models))
    write_text_whole(path, render_evaluation(data))


def pick_questions(models: Mapping[str, Sequence[Sample]]) -> list[Shown]:
    """Pick questions of every task: where models differ, else where they are wrong, else the first.

    Args:
        models: Name -> its samples, in the order of the questions.
    """
    rows = list(zip(*models.values(), strict=True))
    # Sorting keeps the order of the files among questions of equal interest.
    rows.sort(key=_interest)
    shown: list[Shown] = []
    counts: dict[str, int] = {}
    for row in rows:
        task = row[0].task
        if counts.get(task, 0) < _A_TASK and len(shown) < _MOST:
            counts[task] = counts.get(task, 0) + 1
            answers = [
                (name, one.response, one.correct) for name, one in zip(models, row, strict=True)
            ]
            shown.append(Shown(task, row[0].id, row[0].asked, row[0].answer, answers))
    tasks = {sample.task: None for sample in next(iter(models.values()))}
    order = {task: number for number, task in enumerate(tasks)}
    return sorted(shown, key=lambda one: order[one.task])


def _interest(row: Sequence[Sample]) -> int:
    verdicts = {sample.correct for sample in row}
    if verdicts >= {True, False}:
        return 0
    return 1 if False in verdicts else 2
