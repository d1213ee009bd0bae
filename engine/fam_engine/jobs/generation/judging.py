"""Pass 3 of generating: texts judged by what pass 1 found to compare them with, where it found something.

In: texts in the journal. Out: their `correct`. Nothing is judged twice, and tests of code run in the child processes
of `fam_engine.measure.answers`.
"""

from __future__ import annotations

from collections.abc import Callable

from fam_engine.errors import UsageError
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.references import Reference

_JUDGEABLE = """
FROM texts t JOIN questions q USING (position) WHERE t.text != '' AND q.reference IS NOT NULL
"""
_PENDING = f"{_JUDGEABLE} AND NOT t.is_judged"
_COMMIT_EVERY = 64


def num_unjudged(journal: Journal) -> int:
    """Count the texts that can be judged and are not yet."""
    return int(journal.db.execute(f"SELECT COUNT(*) {_PENDING}").fetchone()[0])


def has_code(journal: Journal) -> bool:
    """Whether some texts are judged by running them."""
    query = (
        f"SELECT EXISTS (SELECT 1 {_JUDGEABLE} AND json_extract(q.reference, '$.kind') = 'code')"
    )
    return bool(journal.db.execute(query).fetchone()[0])


def judge_texts(journal: Journal, advance: Callable[[int], None]) -> None:
    """Judge what can be judged.

    Args:
        journal: Where texts and references are.
        advance: Called with the number of texts judged since the last call; may raise.
    """
    pending = f"SELECT t.position, t.sample, t.text, q.reference {_PENDING} LIMIT {_COMMIT_EVERY}"
    while rows := journal.db.execute(pending).fetchall():
        verdicts = [(_is_correct(text, reference), p, s) for p, s, text, reference in rows]
        with journal.commit() as db:
            db.executemany(
                "UPDATE texts SET is_judged = 1, correct = ? WHERE position = ? AND sample = ?",
                verdicts,
            )
        advance(len(rows))


def _is_correct(text: str, reference: str) -> bool | None:
    try:
        return Reference.from_json(reference).judge(text).correct
    except UsageError:
        return None  # only a verifier that is not installed could tell
