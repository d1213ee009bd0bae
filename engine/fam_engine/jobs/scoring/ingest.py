"""Pass 1 of scoring: files in, an on-disk spool of token ids and a table of who is who out.

In: data files, a `TextEncoder`. Out: the spool (one or more entries a record: the record itself, its response alone
for IFD, its response after worked examples) and rows in the journal. Memory stays flat: records pass through in
chunks, and what is needed again later is on disk. A pass that was killed starts over, it is cheap; a finished one is
never repeated.

Lines of JSON go through Rust (`FastRecords`), a chunk at a time; the records it leaves are read and encoded here one
by one, so that what a row means and what is wrong with it has one definition. Here goes all of a file until its first
usable record is found, which tells its form and is shown; all of Parquet; all of a job that makes several entries or
examples of a record (`ifd`, `in_context`, `expand`); and all that a child has to encode. The outcome is the same either
way.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from fam_engine._rust_tokenize import (
    LineChunk,
    RecordBatch,
    Spool,
    context_name,
)
from fam_engine.data.fast_records import FLAGS, FastRecords, flag_names
from fam_engine.data.reading import (
    Row,
    is_json_lines,
    open_lines,
    read_line,
    read_rows,
    reading_errors,
)
from fam_engine.data.records import (
    Record,
    RecordForm,
    TrainOn,
    detect_form,
    mapped_row,
    read_record,
)
from fam_engine.data.tokenizer import Encoded, Ids, TextEncoder
from fam_engine.data.turns import turns_to_json
from fam_engine.errors import RecordError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.quarantine import Quarantined, nothing_usable, read_quarantine
from fam_engine.jobs.scoring.in_context import add_in_context
from fam_engine.jobs.scoring.spooling import ALONE, MAIN, EntryWriter

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY, id TEXT, file TEXT, line INTEGER, source TEXT, grp TEXT,
    correct INTEGER, num_bytes INTEGER, text_digest INTEGER, num_prompt_tokens INTEGER,
    num_response_tokens INTEGER, flags TEXT, entry INTEGER, entry_alone INTEGER, entry_in_context INTEGER
);
CREATE TABLE IF NOT EXISTS texts (
    position INTEGER PRIMARY KEY, context TEXT, verbatim TEXT, response TEXT
);
"""

_FLAG_DUPLICATES = """
UPDATE records SET flags = json_insert(flags, '$[#]', 'duplicate_id')
WHERE id IN (SELECT id FROM records GROUP BY id HAVING COUNT(*) > 1)
"""

_INSERT_RECORD = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# For thousands of rows: `sqlite3` looks for an adapter of every None and bool, which takes longer than
# to store it.
_INSERT_PLAIN = (
    "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, NULLIF(?, -1), ?, ?, ?, ?, ?, ?, NULL, NULL)"
)
_CORRECT = {None: -1, False: 0, True: 1}

# Records at a time in Python, and in Rust: a chunk is a transaction.
_CHUNK = 512
_FAST_CHUNK = 4096
# What `flags` holds for each combination of bits.
_FLAG_TEXTS = tuple(json.dumps(flag_names(bits)) for bits in range(1 << len(FLAGS)))

T = TypeVar("T")


@dataclass(frozen=True)
class IngestPlan:
    """What pass 1 is to make of the records.

    Attributes:
        max_length: Longest sequence the model takes, tokens.
        on_long: What happens to longer ones.
        ifd: Whether each response is also scored alone.
        in_context: Number of worked examples to score each response after; 0: none.
        columns: Record field -> column, from `--map`.
        limit: Read no more records than this.
        train_on: What training is to learn of a record; None: it is not to be learnt.
        expand: Gives the examples a record makes; None: each is one.
    """

    max_length: int
    on_long: Literal["quarantine", "cut-prompt"]
    ifd: bool = False
    in_context: int = 0
    columns: dict[str, str] | None = None
    limit: int | None = None
    train_on: TrainOn | None = None
    expand: Callable[[Record], Sequence[Record]] | None = None


@dataclass(frozen=True)
class FileForm:
    """How a file was understood, with one example to look at."""

    file: str
    form: str
    context: str
    response: str


class _File:
    """A data file being read: its form is that of its first readable row."""

    def __init__(self, file: DataFile, plan: IngestPlan, forms: list[FileForm]) -> None:
        self.name = file.name
        self.path = file.path
        self.stem = file.stem
        self.form: RecordForm | None = None
        self.columns = plan.columns or {}
        self._train_on = plan.train_on
        self._expand = plan.expand
        self._forms = forms

    def read(self, row: Row) -> Sequence[Record | RecordError]:
        """Give the examples a row makes, or what is wrong with it."""
        try:
            record = self._read(mapped_row(row, self.columns), row.line)
        except RecordError as error:
            return [error]
        return self._expand(record) if self._expand else [record]

    def _read(self, columns: Mapping[str, Any], line: int) -> Record:
        if self.form is None:
            self.form = detect_form(columns)
            self._forms.append(FileForm(self.name, self.form.name, "", ""))
        return read_record(
            columns,
            self.form,
            file=self.name,
            line=line,
            stem=self.stem,
            train_on=self._train_on,
        )

    def is_shown(self) -> bool:
        """Whether its form is known and an example was kept."""
        return self.form is not None and bool(self._forms[-1].response)


@dataclass(frozen=True)
class _Item:
    """A row's record, or what is wrong with it; `index` is the row's place in its chunk."""

    index: int
    row: Row
    record: Record | RecordError


class Ingest:
    """Runs pass 1.

    Args:
        journal: Where the records' rows go.
        encoder: Text to ids.
        plan: What to make of the records.
        num_threads: At most so many threads; None: as many as the machine has.
    """

    def __init__(
        self,
        journal: Journal,
        encoder: TextEncoder,
        plan: IngestPlan,
        *,
        num_threads: int | None = None,
    ) -> None:
        self.journal = journal
        self.encoder = encoder
        self.plan = plan
        self.folder = spool_folder(journal)
        self.forms: list[FileForm] = []
        self._position = 0
        self._fast: FastRecords | None = None
        if not (plan.ifd or plan.in_context or plan.expand or encoder.is_in_child):
            self._fast = FastRecords(encoder, max_length=plan.max_length, num_threads=num_threads)

    def run(self, files: Sequence[DataFile], advance: Callable[[int], None]) -> None:
        """Read all files.

        Args:
            files: Data files, in order.
            advance: Called with the number of records read since the last call.

        Raises:
            InputError: Not one record of all files is usable.
        """
        self._start_over()
        writer = EntryWriter(self.folder)
        room = self.plan.limit
        for file in files:
            for num_rows, num_records in self._run_file(writer, file, room):
                room = None if room is None else room - num_rows
                advance(num_records)
            if room == 0:
                break
        if self._position == 0:
            raise nothing_usable(files, next(read_quarantine(self.journal.db), None))
        if self.plan.in_context:
            add_in_context(
                self.journal,
                self.encoder,
                writer,
                count=self.plan.in_context,
                max_length=self.plan.max_length,
            )
        writer.finish()
        with self.journal.commit() as db:
            db.execute(_FLAG_DUPLICATES)
            self.journal.put("ingested", {"records": self._position, "entries": writer.num_entries})
            self.journal.put("forms", [vars(form) for form in self.forms])

    def _start_over(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        with self.journal.commit() as db:
            for table in ("records", "texts", "quarantine"):
                db.execute(f"DELETE FROM {table}")

    # -- rows to records -----------------------------------------------------------------------

    def _run_file(
        self, writer: EntryWriter, data: DataFile, room: int | None
    ) -> Iterator[tuple[int, int]]:
        """Read up to `room` rows of a file; give the numbers of rows and records of each chunk."""
        file = _File(data, self.plan, self.forms)
        if self._fast is not None and is_json_lines(file.path):
            yield from self._run_lines(writer, file, self._fast, room)
            return
        for rows in _chunks(islice(read_rows(file.path), room), _CHUNK):
            items = _items(file, enumerate(rows))
            self._take(writer, file, items)
            yield len(rows), len(items)

    def _run_lines(
        self, writer: EntryWriter, file: _File, fast: FastRecords, room: int | None
    ) -> Iterator[tuple[int, int]]:
        with reading_errors(file.path):
            reader = open_lines(file.path)
        size = 1  # usually all it takes to know and show the form
        while room is None or room > 0:
            with reading_errors(file.path):
                lines = reader.read_chunk(size if room is None else min(size, room))
            if len(lines) == 0:
                return
            self._take_lines(writer, file, fast, lines)
            room = None if room is None else room - len(lines)
            size = _FAST_CHUNK if file.is_shown() else _CHUNK
            yield len(lines), len(lines)

    def _take_lines(
        self, writer: EntryWriter, file: _File, fast: FastRecords, lines: LineChunk
    ) -> None:
        batch = None
        others: Sequence[int] = range(len(lines))
        if file.form is not None and file.is_shown():
            batch = fast.encode(lines, file.form, file.columns)
            others = batch.others()
        items = _items(file, ((index, read_line(lines.row(index))) for index in others))
        self._take(writer, file, items, batch)
        for item in items:
            if isinstance(item.record, Record) and item.record.is_plain:
                fast.learn(item.record.context)

    # -- records to entries --------------------------------------------------------------------

    def _take(
        self,
        writer: EntryWriter,
        file: _File,
        items: Sequence[_Item],
        batch: RecordBatch | None = None,
    ) -> None:
        """Spool a chunk: the records Rust has encoded, and between them the others."""
        encoded = iter(
            self.encoder.encode([item.record for item in items if isinstance(item.record, Record)])
        )
        bad: list[Quarantined] = []
        with self.journal.commit() as db:
            bulk = _Bulk(self, writer, file, batch) if batch else None
            for number, item in enumerate(items):
                if bulk:
                    bulk.keep_until(db, item.index - number)
                record = item.record
                result = self._fit(next(encoded)) if isinstance(record, Record) else record
                if isinstance(result, RecordError):
                    row = item.row
                    bad.append((file.name, row.line, row.offset, result.code, result.reason))
                else:
                    assert isinstance(record, Record)
                    self._keep(db, record, result, writer)
            if bulk and batch:
                bulk.keep_until(db, len(batch))
            self.journal.quarantine(bad)
        writer.flush()

    def _fit(self, encoded: Encoded | RecordError) -> Encoded | RecordError:
        """Put aside what has nothing to predict; apply the rule for records longer than the model."""
        if isinstance(encoded, RecordError):
            return encoded
        if len(encoded.response_ids) + len(encoded.end_of_turn_ids) == 0:
            unscored = "first_token_unscored" in encoded.flags
            what = "nothing stands before its only one" if unscored else "the tokenizer makes none"
            return RecordError(
                "E_EMPTY_TOKENS",
                f"the response has no token to predict ({what}, and nothing ends the turn), expected at least one",
            )
        room = self.plan.max_length - _num_inputs(encoded.response_ids, encoded.end_of_turn_ids)
        excess = len(encoded.context_ids) - room
        if excess <= 0:
            return encoded
        if self.plan.on_long == "quarantine" or room < 1:
            return RecordError(
                "E_TOO_LONG",
                f"is {self.plan.max_length + excess} tokens long, expected at most "
                f"{self.plan.max_length} (--on-long cut-prompt shortens prompts, never responses)",
            )
        return replace(
            encoded,
            context_ids=_cut_left(encoded.context_ids, room, self.encoder.bos_id),
            flags=(*encoded.flags, "prompt_cut"),
        )

    def _keep(
        self, db: sqlite3.Connection, record: Record, encoded: Encoded, writer: EntryWriter
    ) -> None:
        self._show(record, encoded)
        position = self.next_positions(1)
        targets = encoded.response_ids, encoded.end_of_turn_ids
        entry = writer.add((position, MAIN), encoded.context_ids, *targets)
        alone = None
        if self.plan.ifd:
            context, rest = self.encoder.context_alone(encoded.response_ids)
            if len(rest):
                alone = writer.add((position, ALONE), context, rest)
        group = record.group or context_name(encoded.prompt_ids)
        db.execute(
            _INSERT_RECORD,
            (
                position,
                record.id,
                record.file,
                record.line,
                record.source,
                group,
                record.correct,
                len(encoded.response_text.encode()),
                record.text_digest(),
                len(encoded.context_ids),
                len(encoded.response_ids),
                json.dumps(encoded.flags),
                entry,
                alone,
                None,
            ),
        )
        if self.plan.in_context and not record.told and not record.is_more_than_texts:
            turns = turns_to_json(record.context)
            db.execute(
                "INSERT INTO texts VALUES (?, ?, ?, ?)",
                (position, turns, record.verbatim, encoded.response_text),
            )

    def next_positions(self, count: int) -> int:
        """Number the next records; give the first one's position."""
        self._position += count
        return self._position - count

    def _show(self, record: Record, encoded: Encoded) -> None:
        """Keep a file's first record as the example to look at."""
        for index, form in enumerate(self.forms):
            if form.file == record.file and not form.response:
                self.forms[index] = FileForm(
                    form.file, form.form, encoded.context_text, encoded.response_text
                )


class _Bulk:
    """Keeps the records of a batch, a run of neighbours at a time."""

    def __init__(
        self, ingest: Ingest, writer: EntryWriter, file: _File, batch: RecordBatch
    ) -> None:
        self._ingest = ingest
        self._writer = writer
        self._batch = batch
        self._num_kept = 0
        columns = batch.columns()
        lines, stem = columns["line"], file.stem
        # As in the table, from `id` on to `flags`.
        self._columns: tuple[list[Any], ...] = (
            [id_ or f"{file.name}:{line}" for id_, line in zip(columns["id"], lines, strict=True)],
            [file.name] * len(batch),
            lines,
            [source or stem for source in columns["source"]],
            columns["group"],
            [_CORRECT[correct] for correct in columns["correct"]],
            columns["num_bytes"],
            columns["text_digest"],
            columns["num_prompt_tokens"],
            columns["num_response_tokens"],
            [_FLAG_TEXTS[bits] for bits in columns["flags"]],
        )

    def keep_until(self, db: sqlite3.Connection, stop: int) -> None:
        """Keep the records before number `stop` that are not kept yet."""
        start, self._num_kept = self._num_kept, stop
        if start == stop:
            return
        position = self._ingest.next_positions(stop - start)
        entry = self._writer.add_batch(self._batch, start, stop, position)
        columns = (column[start:stop] for column in self._columns)
        numbers = range(position, position + stop - start), range(entry, entry + stop - start)
        db.executemany(_INSERT_PLAIN, zip(numbers[0], *columns, numbers[1], strict=True))


def _items(file: _File, rows: Iterable[tuple[int, Row]]) -> list[_Item]:
    return [_Item(index, row, record) for index, row in rows for record in file.read(row)]


def spool_folder(journal: Journal) -> Path:
    """Give the folder of the spool that pass 1 of a job writes."""
    return journal.folder / "spool"


def ingest_records(
    journal: Journal,
    encoder: TextEncoder,
    plan: IngestPlan,
    files: Sequence[DataFile],
    advance: Callable[[int], None],
) -> Spool:
    """Run pass 1 unless it is done, and open its spool."""
    if journal.get("ingested") is None:
        Ingest(journal, encoder, plan).run(files, advance)
    return Spool.open(str(spool_folder(journal)))


def _num_inputs(response: Ids, end_of_turn: Ids) -> int:
    # The last target is only predicted, never read.
    return max(len(response) + len(end_of_turn) - 1, 0)


def _cut_left(ids: Ids, room: int, bos_id: int | None) -> Ids:
    """Keep the last ids, and the beginning-of-sequence token where there was one."""
    if bos_id is not None and len(ids) and ids[0] == bos_id and room > 1:
        return np.concatenate([ids[:1], ids[len(ids) - room + 1 :]])
    return ids[len(ids) - room :]


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
