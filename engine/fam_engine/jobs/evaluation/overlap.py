"""Which questions were also trained on.

In: training files, and the questions of a job. Out: how many of each task's are in each file, word for word or in large
part (`measure.overlap`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.selection.overlap import Questions
from fam_engine.measure.overlap import find_overlap

_NUM_SHOWN: Final = 5


def overlap_with_training(
    db: sqlite3.Connection, files: Sequence[DataFile], columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Count the questions that are also in training files.

    Args:
        db: Of the job's journal, with its questions.
        files: Training files, in any form records may have.
        columns: Record field -> column, from `--map`.

    Returns:
        For every file and task: `file`, questions `read` of it and rows `skipped`, `task`, `n` questions of the task,
        how many of them are the `same` as one of the file or `similar` to some, and the `ids` of the first.

    Raises:
        InputError: A file holds no questions.
    """
    questions = db.execute("SELECT task, id, asked FROM questions ORDER BY position").fetchall()
    tasks = dict.fromkeys(task for task, _, _ in questions)
    found = []
    for file in files:
        trained = Questions(file, columns)
        overlap = find_overlap(trained, (asked for _, _, asked in questions))
        for task in tasks:
            same, similar = (
                [questions[place][1] for place in places if questions[place][0] == task]
                for places in (overlap.same, overlap.similar)
            )
            found.append(
                {
                    **trained.counts,
                    "task": task,
                    "n": sum(own == task for own, _, _ in questions),
                    "same": len(same),
                    "similar": len(similar),
                    "ids": [*same, *similar][:_NUM_SHOWN],
                }
            )
    return found
