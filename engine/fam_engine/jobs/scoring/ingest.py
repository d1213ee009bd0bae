"""Pass 1 of scoring: files in, an on-disk spool of token ids and a table of who is who out.

In: data files, a `TextEncoder`. Out: the spool (one or more entries a record: the record itself, its response alone
for IFD, its response after worked examples) and rows in the journal. Memory stays flat: records pass through in
chunks, and what is needed again later is on disk. A pass that was killed starts over, it is cheap; a finished one is
never repeated.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from fam_engine._rust_tokenize import Spool
from fam_engine.data.reading import Row, read_rows
from fam_engine.data.records import (
    Record,
    RecordForm,
    detect_form,
    map_columns,
    read_record,
)
from fam_engine.data.tokenizer import Encoded, Ids, TextEncoder
from fam_engine.errors import InputError, RecordError
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring.in_context import add_in_context
from fam_engine.jobs.scoring.spooling import ALONE, MAIN, EntryWriter

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY, id TEXT, file TEXT, line INTEGER, source TEXT, grp TEXT,
    correct INTEGER, num_bytes INTEGER, num_prompt_tokens INTEGER, num_response_tokens INTEGER,
    flags TEXT, entry INTEGER, entry_alone INTEGER, entry_in_context INTEGER
);
CREATE TABLE IF NOT EXISTS texts (
    position INTEGER PRIMARY KEY, context TEXT, verbatim TEXT, response TEXT
);
"""

_FLAG_DUPLICATES = """
UPDATE records SET flags = json_insert(flags, '$[#]', 'duplicate_id')
WHERE id IN (SELECT id FROM records GROUP BY id HAVING COUNT(*) > 1)
"""

_CHUNK = 512

T = TypeVar("T")

Quarantined = tuple[str, int, int | None, str, str]


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
        expand: Gives the examples a record makes; None: each is one.
    """

    max_length: int
    on_long: Literal["quarantine", "cut-prompt"]
    ifd: bool = False
    in_context: int = 0
    columns: dict[str, str] | None = None
    limit: int | None = None
    expand: Callable[[Record], Sequence[Record]] | None = None


@dataclass(frozen=True)
class DataFile:
    """A data file: the name its user gave it, and where it is."""

    name: str
    path: Path


@dataclass(frozen=True)
class FileForm:
    """How a file was understood, with one example to look at."""

    file: str
    form: str
    context: str
    response: str


class Ingest:
    """Runs pass 1.

    Args:
        journal: Where the records' rows go.
        encoder: Text to ids.
        plan: What to make of the records.
    """

    def __init__(self, journal: Journal, encoder: TextEncoder, plan: IngestPlan) -> None:
        self.journal = journal
        self.encoder = encoder
        self.plan = plan
        self.folder = journal.folder / "spool"
        self.forms: list[FileForm] = []
        self._position = 0

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
        first: Quarantined | None = None
        for chunk in _chunks(self._rows(files), _CHUNK):
            bad = self._take(writer, chunk)
            first = first or (bad[0] if bad else None)
            advance(len(chunk))
        if self._position == 0:
            raise _nothing_usable(files, first)
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

    def _rows(self, files: Sequence[DataFile]) -> Iterator[tuple[Row, Record | RecordError, str]]:
        rows = (item for file in files for item in self._file_records(file))
        for row, record, file_name in islice(rows, self.plan.limit):
            if self.plan.expand and isinstance(record, Record):
                yield from ((row, one, file_name) for one in self.plan.expand(record))
            else:
                yield row, record, file_name

    def _file_records(self, file: DataFile) -> Iterator[tuple[Row, Record | RecordError, str]]:
        form: RecordForm | None = None
        for row in read_rows(file.path):
            if row.columns is None:
                yield row, RecordError(row.code or "E_JSON", row.reason or ""), file.name
                continue
            try:
                columns = map_columns(row.columns, self.plan.columns or {})
                if form is None:
                    form = detect_form(columns)
                    self.forms.append(FileForm(file.name, form.name, "", ""))
                yield row, self._read(columns, form, file, row.line), file.name
            except RecordError as error:
                yield row, error, file.name

    def _read(
        self, columns: Mapping[str, Any], form: RecordForm, file: DataFile, line: int
    ) -> Record:
        return read_record(columns, form, file=file.name, line=line, stem=file.path.stem)

    # -- records to entries --------------------------------------------------------------------

    def _take(
        self, writer: EntryWriter, chunk: list[tuple[Row, Record | RecordError, str]]
    ) -> list[Quarantined]:
        """Encode and spool a chunk; give what had to be left out."""
        good = [(row, record) for row, record, _ in chunk if isinstance(record, Record)]
        encoded = iter(self.encoder.encode([record for _, record in good]))
        bad: list[Quarantined] = []
        with self.journal.commit() as db:
            for row, record, file in chunk:
                result = self._fit(next(encoded)) if isinstance(record, Record) else record
                if isinstance(result, RecordError):
                    bad.append((file, row.line, row.offset, result.code, result.reason))
                else:
                    assert isinstance(record, Record)
                    self._keep(db, record, result, writer)
            self.journal.quarantine(bad)
        writer.flush()
        return bad

    def _fit(self, encoded: Encoded | RecordError) -> Encoded | RecordError:
        """Apply the rule for records longer than the model."""
        if isinstance(encoded, RecordError):
            return encoded
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
        return Encoded(
            _cut_left(encoded.context_ids, room, self.encoder.bos_id),
            encoded.response_ids,
            encoded.end_of_turn_ids,
            encoded.context_text,
            (*encoded.flags, "prompt_cut"),
        )

    def _keep(
        self, db: sqlite3.Connection, record: Record, encoded: Encoded, writer: EntryWriter
    ) -> None:
        self._show(record, encoded)
        position, self._position = self._position, self._position + 1
        targets = encoded.response_ids, encoded.end_of_turn_ids
        entry = writer.add((position, MAIN), encoded.context_ids, *targets)
        alone = None
        if self.plan.ifd:
            context, rest = self.encoder.context_alone(encoded.response_ids)
            if len(rest):
                alone = writer.add((position, ALONE), context, rest)
        group = record.group or _context_name(encoded.context_ids)
        db.execute(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                position,
                record.id,
                record.file,
                record.line,
                record.source,
                group,
                record.correct,
                len(record.response.encode()),
                len(encoded.context_ids),
                len(encoded.response_ids),
                json.dumps(encoded.flags),
                entry,
                alone,
                None,
            ),
        )
        if self.plan.in_context:
            turns = json.dumps([[m.role, m.content] for m in record.context])
            db.execute(
                "INSERT INTO texts VALUES (?, ?, ?, ?)",
                (position, turns, record.verbatim, record.response),
            )

    def _show(self, record: Record, encoded: Encoded) -> None:
        """Keep a file's first record as the example to look at."""
        for index, form in enumerate(self.forms):
            if form.file == record.file and not form.response:
                self.forms[index] = FileForm(
                    form.file, form.form, encoded.context_text, record.response
                )


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
    return Spool.open(str(journal.folder / "spool"))


def _num_inputs(response: Ids, end_of_turn: Ids) -> int:
    # The last target is only predicted, never read.
    return max(len(response) + len(end_of_turn) - 1, 0)


def _cut_left(ids: Ids, room: int, bos_id: int | None) -> Ids:
    """Keep the last ids, and the beginning-of-sequence token where there was one."""
    if bos_id is not None and len(ids) and ids[0] == bos_id and room > 1:
        return np.concatenate([ids[:1], ids[len(ids) - room + 1 :]])
    return ids[len(ids) - room :]


def _context_name(ids: Ids) -> str:
    """Name a prompt by its ids, for grouping answers to the same question."""
    return hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _nothing_usable(files: Sequence[DataFile], first: Quarantined | None) -> InputError:
    where = ", ".join(file.name for file in files)
    if first is None:
        return InputError(
            "holds no records, expected at least one", code="E_INPUT_EMPTY", where=where
        )
    file, line, _, code, reason = first
    return InputError(
        f"not one record is usable; the first fault is {code}: {reason}",
        code="E_INPUT_UNUSABLE",
        where=f"{file}:{line}",
    )
