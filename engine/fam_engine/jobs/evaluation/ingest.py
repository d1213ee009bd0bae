"""Pass 1 of evaluating: task files in, a table of questions as token ids out.

In: task files, a `TextEncoder`. Out: a row a question in the journal; where options are to be scored, also a spool
with an entry an option. A pass that was killed starts over; a finished one is never repeated. Nothing here depends on
an adapter, so every model is asked exactly the same.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal

from fam_engine._rust_tokenize import Spool
from fam_engine.data.records import Record
from fam_engine.data.tokenizer import Encoded, TextEncoder
from fam_engine.errors import RecordError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.evaluation.few_shot import Examples
from fam_engine.jobs.evaluation.questions import Question, read_question
from fam_engine.jobs.generation.ingest import record_seed
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.quarantine import Quarantined
from fam_engine.jobs.question_files import Item, check_prompt, ingest_items, read_items
from fam_engine.jobs.scoring.spooling import MAIN, EntryWriter
from fam_engine.jobs.selection.overlap import asked

# `first_entry`: where its options begin in the spool; null: it is answered by writing.
SCHEMA = """
CREATE TABLE IF NOT EXISTS questions (
    position INTEGER PRIMARY KEY, id TEXT, file TEXT, line INTEGER, task TEXT, kind TEXT,
    answer TEXT, choices TEXT, tests TEXT, gold INTEGER, asked TEXT, prompt TEXT, context BLOB,
    num_prompt_tokens INTEGER, seed INTEGER, first_entry INTEGER
);
"""

Method = Literal["logprob", "generation"]


@dataclass(frozen=True)
class IngestPlan:
    """What pass 1 is to make of the rows.

    Attributes:
        max_length: Longest sequence the model takes, tokens.
        max_new_tokens: Of these, what is kept free for a written answer.
        choice_by: How options are chosen.
        examples: What stands before each question.
        columns: Record field -> column, from `--map`.
        limit: Read no more rows than this of each file.
        seed: Of the run.
    """

    max_length: int
    max_new_tokens: int
    choice_by: Method
    examples: Examples
    columns: dict[str, str]
    limit: int | None
    seed: int


def ingest_tasks(
    journal: Journal,
    encoder: TextEncoder,
    plan: IngestPlan,
    files: Sequence[DataFile],
    advance: Callable[[int], None],
) -> Spool | None:
    """Run pass 1 unless it is done, and open its spool.

    Args:
        journal: Where the questions go.
        encoder: Text to ids.
        plan: What to make of the rows.
        files: Task files, in order.
        advance: Called with the number of rows read since the last call.

    Returns:
        The options to be scored, if there are any.

    Raises:
        InputError: Not one row of all files is usable.
    """
    if journal.get("ingested") is None:
        _Ingest(journal, encoder, plan).run(files, advance)
    has_entries = journal.get("ingested")["entries"] > 0
    return Spool.open(str(journal.folder / "spool")) if has_entries else None


class _Ingest:
    def __init__(self, journal: Journal, encoder: TextEncoder, plan: IngestPlan) -> None:
        self._journal = journal
        self._encoder = encoder
        self._plan = plan
        self._num_questions = 0

    def run(self, files: Sequence[DataFile], advance: Callable[[int], None]) -> None:
        """Read the files from the beginning."""
        plan, folder = self._plan, self._journal.folder / "spool"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        writer = EntryWriter(folder)
        items = read_items(files, plan.columns, read_question, limit_a_file=plan.limit)
        take = partial(self._take, writer)
        count = ingest_items(self._journal, "questions", files, items, take, advance)
        writer.finish()
        with self._journal.commit():
            self._journal.put("ingested", {"questions": count, "entries": writer.num_entries})

    def _take(self, writer: EntryWriter, chunk: list[Item[Question]]) -> int:
        """Encode and keep a chunk; give how many questions it was."""
        texts = [
            self._texts(item.read) if isinstance(item.read, Question) else [] for item in chunk
        ]
        encoded = iter(self._encoder.encode([text for some in texts for text in some]))
        bad: list[Quarantined] = []
        with self._journal.commit() as db:
            for item, some in zip(chunk, texts, strict=True):
                own = list(islice(encoded, len(some)))
                try:
                    if isinstance(item.read, RecordError):
                        raise item.read
                    self._keep(db, writer, item.read, [check_prompt(one) for one in own])
                except RecordError as error:
                    bad.append(item.quarantined(error))
            self._journal.quarantine(bad)
        writer.flush()
        return len(chunk) - len(bad)

    def _texts(self, question: Question) -> list[Record]:
        """Give what is to be encoded: the question with each option, or with a stand-in."""
        record = question.record
        if self._plan.examples.count:
            record = self._plan.examples.before(record)
        if not self._is_scored(question):
            return [record]
        return [replace(record, response=choice) for choice in question.choices]

    def _is_scored(self, question: Question) -> bool:
        return question.gold is not None and self._plan.choice_by == "logprob"

    def _keep(
        self,
        db: sqlite3.Connection,
        writer: EntryWriter,
        question: Question,
        encoded: list[Encoded],
    ) -> None:
        is_scored = self._is_scored(question)
        self._check_length(encoded, is_scored=is_scored)
        position, self._num_questions = self._num_questions, self._num_questions + 1
        context = encoded[0].context_ids
        record = question.record
        # The id of a row that has none says where it stands, and its texts must not follow from that.
        name = None if record.id == f"{record.file}:{record.line}" else record.id
        db.execute(
            f"INSERT INTO questions VALUES (?{', ?' * 15})",
            (
                position,
                record.id,
                record.file,
                record.line,
                question.task,
                question.kind,
                question.answer,
                json.dumps(question.choices),
                json.dumps(question.tests),
                question.gold,
                asked(record),
                encoded[0].context_text,
                context.tobytes(),
                len(context),
                record_seed(self._plan.seed, name, context),
                writer.num_entries if is_scored else None,
            ),
        )
        if is_scored:
            for one in encoded:
                label = (writer.num_entries, MAIN)
                writer.add(label, context, one.response_ids, one.end_of_turn_ids)

    def _check_length(self, encoded: list[Encoded], *, is_scored: bool) -> None:
        plan = self._plan
        for one in encoded:
            if len(one.response_ids) == 0:
                raise RecordError("E_CHOICES", "a choice has no tokens, so no log-prob")
            # Of a scored text the last token is only predicted, never read.
            scored = len(one.response_ids) + len(one.end_of_turn_ids) - 1
            length = len(one.context_ids) + (scored if is_scored else plan.max_new_tokens)
            if length > plan.max_length:
                what = "its longest choice" if is_scored else "--max-new-tokens"
                raise RecordError(
                    "E_TOO_LONG",
                    f"is {length} tokens long with {what}, expected at most {plan.max_length}",
                )
