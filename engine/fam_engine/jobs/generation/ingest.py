"""Pass 1 of generating: files in, a table of questions as token ids out.

In: data files, a `TextEncoder`. Out: a row a question in the journal: its context ids, what its answer is to be written
beside, and its seed. A pass that was killed starts over; a finished one is never repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from fam_engine.data.json_lines import dump_row
from fam_engine.data.reading import Row
from fam_engine.data.records import Record, detect_form, gold_answer, read_record
from fam_engine.data.tokenizer import Encoded, Ids, TextEncoder
from fam_engine.errors import RecordError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.generation.rows import RESPONSE_COLUMNS, as_question
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.quarantine import Quarantined
from fam_engine.jobs.question_files import (
    Item,
    check_prompt,
    choices_of,
    ingest_items,
    kind_of,
    read_items,
    texts_of,
)
from fam_engine.jobs.references import Reference, find_reference

SCHEMA = """
CREATE TABLE IF NOT EXISTS questions (
    position INTEGER PRIMARY KEY, id TEXT, file TEXT, line INTEGER, row TEXT, context BLOB,
    num_prompt_tokens INTEGER, seed INTEGER, flags TEXT, reference TEXT
);
"""


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
    """A row read as a question: with a stand-in for its answer, the record it is, and what answers are judged by."""

    row: dict[str, Any]
    record: Record
    reference: Reference | None


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
    ingest = _Ingest(journal, encoder, plan)
    items = islice(read_items(files, plan.columns, _read), plan.limit)
    count = ingest_items(journal, "questions", files, items, ingest.take, advance)
    with journal.commit():
        journal.put("ingested", count)
        journal.put("example", ingest.example)


def _read(file: DataFile, place: Row, row: Mapping[str, Any], kind: str) -> Question:
    question = as_question(row, kind)
    record = read_record(
        question, detect_form(question), file=file.name, line=place.line, stem=file.stem
    )
    return Question(question, record, _reference(row, question, kind))


def _reference(row: Mapping[str, Any], question: Mapping[str, Any], kind: str) -> Reference | None:
    """Give what answers are judged by: gold, tests, or the final answer in the `answer` beside a `question`."""
    choices, tests, of_task = choices_of(question), texts_of(question, "tests"), kind_of(question)
    is_beside = RESPONSE_COLUMNS[kind] == "answer"
    gold, response = (None, _beside(row)) if is_beside else (gold_answer(question), "")
    if not (gold or response or tests):
        return None
    return find_reference(response, gold, choices, tests, kind=of_task)


def _beside(row: Mapping[str, Any]) -> str:
    """Give the answer beside a question, right unless the row denies it; empty where it is none."""
    if row.get("correct") is False or not isinstance(row.get("answer"), str | int | float):
        return ""
    return gold_answer(row) or ""


class _Ingest:
    def __init__(self, journal: Journal, encoder: TextEncoder, plan: IngestPlan) -> None:
        self._journal = journal
        self._encoder = encoder
        self._plan = plan
        self._num_questions = 0
        self.example = ""

    def take(self, chunk: list[Item[Question]]) -> int:
        """Encode and keep a chunk; give how many questions it was."""
        records = [item.read.record for item in chunk if isinstance(item.read, Question)]
        encoded = iter(self._encoder.encode(records))
        bad: list[Quarantined] = []
        with self._journal.commit() as db:
            for item in chunk:
                try:
                    if isinstance(item.read, RecordError):
                        raise item.read
                    values = self._values(item, *self._context(next(encoded)))
                    db.execute(
                        f"INSERT INTO questions VALUES ({', '.join('?' * len(values))})", values
                    )
                except RecordError as error:
                    bad.append(item.quarantined(error))
            self._journal.quarantine(bad)
        return len(chunk) - len(bad)

    def _context(self, encoded: Encoded | RecordError) -> tuple[Ids, list[str]]:
        """Give the context ids and flags, with room for the answer."""
        encoded = check_prompt(encoded)
        self.example = self.example or encoded.context_text
        flags = [flag for flag in encoded.flags if flag == "special_in_text"]
        room = self._plan.max_length - self._plan.max_new_tokens
        ids = encoded.context_ids
        if len(ids) <= room:
            return ids, flags
        if self._plan.on_long == "quarantine" or room < 1:
            raise RecordError(
                "E_TOO_LONG",
                f"the prompt is {len(ids)} tokens long, expected at most {room}: "
                f"{self._plan.max_length} less {self._plan.max_new_tokens} for the answer "
                "(--max-new-tokens; --on-long cut-prompt shortens the prompt)",
            )
        bos = ids[:1] if ids[0] == self._encoder.bos_id and room > 1 else ids[:0]
        return np.concatenate([bos, ids[len(ids) - room + len(bos) :]]), [*flags, "prompt_cut"]

    def _values(self, item: Item[Question], context: Ids, flags: list[str]) -> tuple[Any, ...]:
        assert isinstance(item.read, Question)
        row, record = item.read.row, item.read.record
        position, self._num_questions = self._num_questions, self._num_questions + 1
        name = str(row["id"]) if "id" in row else None
        return (
            position,
            record.id,
            record.file,
            record.line,
            dump_row(row),
            context.tobytes(),
            len(context),
            record_seed(self._plan.seed, name, context),
            json.dumps(flags),
            item.read.reference and item.read.reference.to_json(),
        )


def record_seed(seed: int, name: str | None, context_ids: Ids) -> int:
    """Give the seed of one record, below 2^63.

    It follows from the run's seed, the record's own id (if it has one) and its prompt, not from its
    place: the same record gives the same text in any file.
    """
    label = json.dumps([seed, name]).encode()
    digest = hashlib.blake2b(label + context_ids.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
