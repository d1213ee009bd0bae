"""Pass 3 of generating: texts judged against gold answers, where there are any.

In: texts in the journal. Out: their `correct`. Nothing is judged twice, and tests of code run in the child processes
of `fam_engine.measure.answers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fam_engine.errors import UsageError
from fam_engine.jobs.journal import Journal
from fam_engine.measure.answers import guess_kind, judge

# In the question/answer form `answer` is where the text goes, not a gold answer.
_JUDGEABLE = """
FROM texts t JOIN questions q USING (position)
WHERE t.text != ''
  AND (json_extract(q.row, '$.tests') IS NOT NULL
       OR (json_extract(q.row, '$.answer') IS NOT NULL
           AND json_extract(q.row, '$.question') IS NULL))
"""
_PENDING = f"{_JUDGEABLE} AND NOT t.is_judged"
_COMMIT_EVERY = 64


def num_unjudged(journal: Journal) -> int:
    """Count the texts that can be judged and are not yet."""
    return int(journal.db.execute(f"SELECT COUNT(*) {_PENDING}").fetchone()[0])


def has_code(journal: Journal) -> bool:
    """Whether some texts are judged by running them."""
    query = f"SELECT EXISTS (SELECT 1 {_JUDGEABLE} AND json_extract(q.row, '$.tests') IS NOT NULL)"
    return bool(journal.db.execute(query).fetchone()[0])


def judge_texts(journal: Journal, advance: Callable[[int], None]) -> None:
    """Judge what can be judged.

    Args:
        journal: Where texts and gold answers are.
        advance: Called with the number of texts judged since the last call; may raise.
    """
    pending = f"SELECT t.position, t.sample, t.text, q.row {_PENDING} LIMIT {_COMMIT_EVERY}"
    while rows := journal.db.execute(pending).fetchall():
        verdicts = [(_is_correct(text, json.loads(row)), p, s) for p, s, text, row in rows]
        with journal.commit() as db:
            db.executemany(
                "UPDATE texts SET is_judged = 1, correct = ? WHERE position = ? AND sample = ?",
                verdicts,
            )
        advance(len(rows))


def _is_correct(text: str, row: dict[str, Any]) -> bool | None:
    answer = str(row["answer"]) if "answer" in row and "question" not in row else None
    choices, tests = row.get("choices", []), row.get("tests", [])
    kind = row.get("kind") or guess_kind(answer, choices, tests)
    try:
        return judge(text, kind=kind, answer=answer, choices=choices, tests=tests).correct
    except UsageError:
        return None  # only a verifier that is not installed could tell
