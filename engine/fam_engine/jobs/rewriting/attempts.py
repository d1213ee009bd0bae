"""Pass 2 of rewriting: attempt by attempt, prompts through the model and candidates judged, until each is verified.

In: a table of records, a `Generator`. Out: a row of `candidates` a text. The texts of an attempt are made by the
generating job's own pass in a journal of their own, with one question for each record that still lacks a verified
candidate: what stops it costs the texts on their way, and a record that kills the process is found and left out of it.
Candidates are judged when all texts of the attempt are there; then its journal goes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fam_engine.config import RewriteConfig
from fam_engine.data.tokenizer import Ids, TextEncoder
from fam_engine.errors import RecordError
from fam_engine.jobs.generation.texts import SCHEMA as TEXTS_SCHEMA
from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.rewriting import ingest
from fam_engine.jobs.rewriting.asking import Attempt, attempt_seed, prompt_ids
from fam_engine.jobs.rewriting.distance import similarity
from fam_engine.jobs.rewriting.ingest import Source, read_source
from fam_engine.jobs.rewriting.verification import VERIFIED, WHOLE_BUT_WRONG, Check, check_candidate

SCHEMA = f"""
{ingest.SCHEMA}
CREATE TABLE IF NOT EXISTS candidates (
    position INTEGER, attempt INTEGER, text TEXT, num_tokens INTEGER, finish_reason TEXT,
    reason TEXT, detail TEXT, extracted TEXT, edit_distance INTEGER, similarity REAL,
    own_similarity REAL, PRIMARY KEY (position, attempt)
);
"""
_INSERT_CANDIDATE = f"INSERT OR REPLACE INTO candidates VALUES ({', '.join('?' * 11)})"
_INSERT_QUESTION = """
INSERT INTO questions (position, id, file, line, row, context, num_prompt_tokens, seed, flags)
VALUES (?, ?, ?, ?, '{}', ?, ?, ?, '[]')
"""
_OPEN = """
SELECT position FROM records r WHERE reference IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM candidates c
    WHERE c.position = r.position AND (c.attempt = :attempt OR c.reason = :verified)
)
"""
_CHUNK = 64


class Attempts:
    """The attempts at a job's records.

    Args:
        config: The job's settings.
        journal: Where records are and candidates go.
        encoder: Text to ids.
        max_length: Longest prompt and text together, tokens.
    """

    def __init__(
        self, config: RewriteConfig, journal: Journal, encoder: TextEncoder, max_length: int
    ) -> None:
        self._config = config
        self._journal = journal
        self._encoder = encoder
        self._max_length = max_length

    def is_done(self, attempt: Attempt) -> bool:
        """Whether an attempt has been made and judged."""
        return int(self._journal.get("attempts_done") or 0) > attempt.number

    def open_positions(self, attempt: Attempt) -> list[int]:
        """Give the records an attempt is for: those that can be verified, and are not yet.

        What changes the model's own answer needs one, whole and wrong.
        """
        query = _OPEN
        if attempt.changes_own:
            reasons = ", ".join(f"'{reason}'" for reason in WHOLE_BUT_WRONG)
            query += f"""AND EXISTS (SELECT 1 FROM candidates c WHERE c.position = r.position
                         AND c.attempt = 0 AND c.reason IN ({reasons}))"""
        values = {"attempt": attempt.number, "verified": VERIFIED}
        rows = self._journal.db.execute(f"{query} ORDER BY position", values)
        return [row[0] for row in rows]

    @contextmanager
    def questions(self, attempt: Attempt) -> Iterator[Journal]:
        """Open the journal of an attempt, its prompts in place for `TextMaker`."""
        with Journal(self._folder(attempt), self._journal.get("key"), TEXTS_SCHEMA) as own:
            if own.get("asked") is None:
                self._ask(attempt, own)
            yield own

    def _folder(self, attempt: Attempt) -> Path:
        return self._journal.folder / f"attempt-{attempt.number}"

    def _ask(self, attempt: Attempt, own: Journal) -> None:
        with own.commit() as db:
            db.execute("DELETE FROM questions")
        positions = self.open_positions(attempt)
        for start in range(0, len(positions), _CHUNK):
            questions = []
            with self._journal.commit():
                for position in positions[start : start + _CHUNK]:
                    source = read_source(self._journal, position)
                    ids = self._prompt(attempt, source)
                    if ids is not None:
                        questions.append(self._question(attempt, source, ids))
            with own.commit() as db:
                db.executemany(_INSERT_QUESTION, questions)
        with own.commit():
            own.put("asked", True)

    def _prompt(self, attempt: Attempt, source: Source) -> Ids | None:
        """Give the prompt's ids; one that cannot be made is a rejected candidate."""
        own_text = self._own_text(source) if attempt.changes_own else None
        try:
            ids = prompt_ids(self._encoder, attempt, source, own_text)
            if len(ids) < self._max_length:
                return ids
            problem = f"is {len(ids)} tokens long, the model takes {self._max_length}"
        except RecordError as error:
            problem = error.reason
        self._keep(attempt, source, "", (0, None), Check("prompt", problem))
        return None

    def _question(self, attempt: Attempt, source: Source, ids: Ids) -> tuple[object, ...]:
        config = self._config
        seed = attempt_seed(config.seed, config.method, attempt.number, source.name, ids)
        place = (source.position, source.name, source.file, source.line)
        return (*place, ids.tobytes(), len(ids), seed)

    def _own_text(self, source: Source) -> str:
        row = self._journal.db.execute(
            "SELECT text FROM candidates WHERE position = ? AND attempt = 0", (source.position,)
        ).fetchone()
        return str(row[0])

    # -- candidates --------------------------------------------------------------------------------

    def unjudged(self, attempt: Attempt, own: Journal) -> list[int]:
        """Give the positions whose text of this attempt has no verdict yet."""
        judged = {
            row[0]
            for row in self._journal.db.execute(
                "SELECT position FROM candidates WHERE attempt = ?", (attempt.number,)
            )
        }
        positions = own.db.execute("SELECT position FROM texts ORDER BY position")
        return [row[0] for row in positions if row[0] not in judged]

    def judge(self, attempt: Attempt, own: Journal, positions: Sequence[int]) -> None:
        """Judge some texts of an attempt, and keep them with their verdicts."""
        with self._journal.commit():
            for position in positions:
                source = read_source(self._journal, position)
                text, num_tokens, finish_reason = own.db.execute(
                    "SELECT text, num_tokens, finish_reason FROM texts WHERE position = ?",
                    (position,),
                ).fetchone()
                text = text.strip()
                before = self._own_text(source) if attempt.changes_own else source.response
                check = _check(attempt, source, before, text, finish_reason)
                self._keep(attempt, source, text, (num_tokens, finish_reason), check)

    def _keep(
        self,
        attempt: Attempt,
        source: Source,
        text: str,
        made: tuple[int, str | None],
        check: Check,
    ) -> None:
        distance, alike = similarity(text, source.response)
        own_alike = similarity(text, self._own_text(source))[1] if attempt.changes_own else None
        values = (source.position, attempt.number, text, *made)
        verdict = (check.reason, check.detail, check.extracted)
        self._journal.db.execute(_INSERT_CANDIDATE, (*values, *verdict, distance, alike, own_alike))

    def finish(self, attempt: Attempt) -> None:
        """Note that all candidates of an attempt are judged, and remove its journal."""
        with self._journal.commit():
            self._journal.put("attempts_done", attempt.number + 1)
        with storage_errors(self._folder(attempt)):
            shutil.rmtree(self._folder(attempt), ignore_errors=True)


def _check(
    attempt: Attempt, source: Source, before: str, text: str, finish_reason: str | None
) -> Check:
    if finish_reason is None:
        return Check("crash", "the process died or ran out of memory each time it was made")
    assert source.reference is not None
    return check_candidate(
        text,
        finish_reason,
        source.reference,
        shown=source.response if attempt.shows_response else None,
        with_working=attempt.wants_working(before),
    )
