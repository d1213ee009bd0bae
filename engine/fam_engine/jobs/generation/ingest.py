"""Pass 1 of generating: files in, a table of questions as token ids out.

In: data files, a `TextEncoder`. Out: a row a question in the journal: its context ids, what its answer is to be written
beside, and its seed. A pass that was killed starts over; a finished one is never repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from fam_engine.data.reading import Row, read_rows
from fam_engine.data.records import Record, detect_form, map_columns, read_record
from fam_engine.data.tokenizer import Encoded, Ids, TextEncoder
from fam_engine.errors import InputError, RecordError
from fam_engine.jobs.generation.rows import as_question, find_kind
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring.ingest import DataFile

SCHEMA = """
CREATE TABLE IF NOT EXISTS questions (
    position INTEGER PRIMARY KEY, id TEXT, file TEXT, line INTEGER, row TEXT, context BLOB,
    num_prompt_tokens INTEGER, seed INTEGER, flags TEXT
);
"""

_CHUNK = 512
Quarantined = tuple[str, int, int | None, str, str]


@dataclass(frozen=True)
class IngestPlan:
    """What pass 1 is to make of the records.

    Attributes:
        max_length: Longest prompt and answer together, tokens.
        max_new_tokens: Of these, what is kept free for the answer.
        on_long: What happens to longer ones.
        columns: Record field -> column, from `--map`.
        limit: Read no more records than this.
        seed: Of the run.
    """

    max_length: int
    max_new_tokens: int
    on_long: Literal["quarantine", "cut-prompt"]
    columns: dict[str, str]
    limit: int | None
    seed: int


@dataclass(frozen=True)
class Question:
    """A row read as a question."""

    place: Row
    file: str
    row: dict[str, Any]
    record: Record


@dataclass(frozen=True)
class _Bad:
    place: Row
    file: str
    error: RecordError


def ingest_questions(
    journal: Journal,
    encoder: TextEncoder,
    plan: IngestPlan,
    files: Sequence[DataFile],
    advance: Callable[[int], None],
) -> None:
    """Run pass 1 unless it is done.

    Args:
        journal: Where the questions go.
        encoder: Text to ids.
        plan: What to make of the records.
        files: Data files, in order.
        advance: Called with the number of records read since the last call.

    Raises:
        InputError: Not one record of all files is usable.
    """
    if journal.get("ingested") is not None:
        return
    with journal.commit() as db:
        db.execute("DELETE FROM questions")
        db.execute("DELETE FROM quarantine")
    ingest = _Ingest(journal, encoder, plan)
    rows = islice(_rows(files, plan.columns), plan.limit)
    while chunk := list(islice(rows, _CHUNK)):
        ingest.take(chunk)
        advance(len(chunk))
    if ingest.num_questions == 0:
        raise _nothing_usable(files, journal)
    with journal.commit():
        journal.put("ingested", ingest.num_questions)
        journal.put("example", ingest.example)


def _rows(files: Sequence[DataFile], columns: dict[str, str]) -> Iterator[Question | _Bad]:
    for file in files:
        kind: str | None = None
        for place in read_rows(file.path):
            if place.columns is None:
                reason = RecordError(place.code or "E_JSON", place.reason or "")
                yield _Bad(place, file.name, reason)
                continue
            try:
                row = map_columns(place.columns, columns)
                kind = kind or find_kind(row)
                yield _read(place, file, as_question(row, kind))
            except RecordError as error:
                yield _Bad(place, file.name, error)


def _read(place: Row, file: DataFile, row: dict[str, Any]) -> Question:
    record = read_record(
        row, detect_form(row), file=file.name, line=place.line, stem=file.path.stem
    )
    for name in ("choices", "tests"):
        texts = row.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RecordError("E_RECORD_TYPE", f"field `{name}` is not a list of texts")
    return Question(place, file.name, row, record)


class _Ingest:
    def __init__(self, journal: Journal, encoder: TextEncoder, plan: IngestPlan) -> None:
        self._journal = journal
        self._encoder = encoder
        self._plan = plan
        self.num_questions = 0
        self.example = ""

    def take(self, chunk: list[Question | _Bad]) -> None:
        """Encode and keep a chunk."""
        questions = [item for item in chunk if isinstance(item, Question)]
        encoded = iter(self._encoder.encode([question.record for question in questions]))
        bad: list[Quarantined] = []
        with self._journal.commit() as db:
            for item in chunk:
                result = self._context(next(encoded)) if isinstance(item, Question) else item.error
                if isinstance(result, RecordError):
                    place = item.place
                    bad.append((item.file, place.line, place.offset, result.code, result.reason))
                else:
                    assert isinstance(item, Question)
                    values = self._values(item, *result)
                    db.execute("INSERT INTO questions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            self._journal.quarantine(bad)

    def _context(self, encoded: Encoded | RecordError) -> tuple[Ids, list[str]] | RecordError:
        """Give the context ids and flags, with room for the answer."""
        if isinstance(encoded, RecordError):
            return encoded
        if "first_token_unscored" in encoded.flags:
            return RecordError("E_EMPTY_PROMPT", "the prompt is empty and the model has no BOS")
        self.example = self.example or encoded.context_text
        flags = [flag for flag in encoded.flags if flag == "special_in_text"]
        room = self._plan.max_length - self._plan.max_new_tokens
        ids = encoded.context_ids
        if len(ids) <= room:
            return ids, flags
        if self._plan.on_long == "quarantine" or room < 1:
            return RecordError(
                "E_TOO_LONG",
                f"the prompt is {len(ids)} tokens long, expected at most {room}: "
                f"{self._plan.max_length} less --max-new-tokens (--on-long cut-prompt shortens it)",
            )
        bos = ids[:1] if ids[0] == self._encoder.bos_id and room > 1 else ids[:0]
        return np.concatenate([bos, ids[len(ids) - room + len(bos) :]]), [*flags, "prompt_cut"]

    def _values(self, question: Question, context: Ids, flags: list[str]) -> tuple[Any, ...]:
        position, self.num_questions = self.num_questions, self.num_questions + 1
        name = str(question.row["id"]) if "id" in question.row else None
        return (
            position,
            question.record.id,
            question.file,
            question.place.line,
            json.dumps(question.row, ensure_ascii=False),
            context.tobytes(),
            len(context),
            record_seed(self._plan.seed, name, context),
            json.dumps(flags),
        )


def record_seed(seed: int, name: str | None, context_ids: Ids) -> int:
    """Give the seed of one record, below 2^63.

    It follows from the run's seed, the record's own id (if it has one) and its prompt, not from its
    place: the same record gives the same text in any file.
    """
    label = json.dumps([seed, name]).encode()
    digest = hashlib.blake2b(label + context_ids.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _nothing_usable(files: Sequence[DataFile], journal: Journal) -> InputError:
    first = journal.db.execute(
        "SELECT file, line, code, reason FROM quarantine ORDER BY number LIMIT 1"
    ).fetchone()
    if first is None:
        where = ", ".join(file.name for file in files)
        return InputError(
            "holds no records, expected at least one", code="E_INPUT_EMPTY", where=where
        )
    file, line, code, reason = first
    return InputError(
        f"not one record is usable; the first fault is {code}: {reason}",
        code="E_INPUT_UNUSABLE",
        where=f"{file}:{line}",
    )
