"""Pass 1 of rewriting: files in, a table of records with what their candidates will be compared with out.

In: data files, a `TextEncoder`. Out: a row a record in the journal. What the model could not read at all is
quarantined, by the rules of every other command; a record whose answer nobody could verify is kept, and keeps its
answer. A pass that was killed starts over; a finished one is never repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fam_engine.data.json_lines import dump_row
from fam_engine.data.reading import Row
from fam_engine.data.records import Record, detect_form, read_record
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.data.turns import Message, Told, turns_from_json, turns_to_json
from fam_engine.errors import InputError, RecordError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.generation.rows import as_question
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
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY, id TEXT, name TEXT, file TEXT, line INTEGER, source TEXT, row TEXT,
    context TEXT, verbatim TEXT, kwargs TEXT, response TEXT, correct INTEGER, reference TEXT
);
"""


@dataclass(frozen=True)
class Source:
    """A record to be rewritten, as the journal keeps it.

    Attributes:
        position: Number among the readable records, from 0.
        name: Its own id, if it has one: what its random choices follow from, beside its prompt.
        file: Name of its file.
        line: Line or row number in it.
        context: The turns before the answer.
        verbatim: The text before the answer where there is no template.
        told: What a template is told beside the turns.
        response: The given answer.
        reference: What candidates are compared with; None where nothing can be.
    """

    position: int
    name: str | None
    file: str
    line: int
    context: tuple[Message, ...]
    verbatim: str
    told: Told
    response: str
    reference: Reference | None


@dataclass(frozen=True)
class _Read:
    """A row read as a record, with the row its rewritten answer will be written into."""

    form: str
    record: Record
    question: dict[str, Any]
    reference: Reference | None


def ingest_records(
    journal: Journal,
    encoder: TextEncoder,
    files: Sequence[DataFile],
    *,
    columns: Mapping[str, str],
    limit: int | None,
    advance: Callable[[int], None],
) -> None:
    """Run pass 1 unless it is done.

    Args:
        journal: Where the records go.
        encoder: Text to ids, to find out what the model cannot read.
        files: Data files, in order.
        columns: Record field -> column, from `--map`.
        limit: Read no more rows than this.
        advance: Called with the number of rows read since the last call.

    Raises:
        InputError: Not one record of all files is usable, or the files are written in different forms.
    """
    if journal.get("ingested") is not None:
        return
    ingest = _Ingest(journal, encoder)
    items = islice(read_items(files, columns, ingest.read), limit)
    count = ingest_items(journal, "records", files, items, ingest.take, advance)
    with journal.commit():
        journal.put("ingested", count)
        journal.put("forms", list(ingest.forms.values()))


class _Ingest:
    """Reads rows and keeps records; remembers what each file asks with, and its first record."""

    def __init__(self, journal: Journal, encoder: TextEncoder) -> None:
        self._journal = journal
        self._encoder = encoder
        self._kinds: dict[str, str] = {}
        self._count = 0
        self.forms: dict[str, dict[str, str]] = {}

    def read(self, file: DataFile, place: Row, row: Mapping[str, Any], kind: str) -> _Read:
        """Read a row."""
        if file.name not in self._kinds:
            self._kinds[file.name] = kind
            _check_kinds(self._kinds)
        form = detect_form(row)
        record = read_record(row, form, file=file.name, line=place.line, stem=file.stem)
        if record.is_more_than_texts:
            raise RecordError(
                "E_REWRITE_TOOLS",
                "has tools, calls or reasoning; what is rewritten is shown to the model as text, without them",
            )
        question = as_question(row, kind)
        if isinstance(row.get("provenance"), Mapping):
            question["provenance"] = row["provenance"]
        read = _Read(form.name, record, question, _reference(record, row))
        self.forms.setdefault(file.name, _form(read))
        return read

    def take(self, chunk: list[Item[_Read]]) -> int:
        """Keep a chunk; give how many of its records are usable."""
        records = [item.read.record for item in chunk if isinstance(item.read, _Read)]
        encoded = iter(self._encoder.encode(records))
        bad: list[Quarantined] = []
        with self._journal.commit() as db:
            for item in chunk:
                try:
                    if isinstance(item.read, RecordError):
                        raise item.read
                    check_prompt(next(encoded))
                    values = (self._count, *_values(item.read))
                    db.execute(
                        f"INSERT INTO records VALUES ({', '.join('?' * len(values))})", values
                    )
                    self._count += 1
                except RecordError as error:
                    bad.append(item.quarantined(error))
            self._journal.quarantine(bad)
        return len(chunk) - len(bad)


def _reference(record: Record, row: Mapping[str, Any]) -> Reference | None:
    choices, tests = choices_of(row), texts_of(row, "tests")
    return find_reference(record.response, record.answer, choices, tests, kind=kind_of(row))


def _check_kinds(kinds: Mapping[str, str]) -> None:
    """Refuse files of different forms: the one file that comes out must have one form."""
    (first, kind), (name, other) = next(iter(kinds.items())), list(kinds.items())[-1]
    if other != kind:
        raise InputError(
            f"asks with `{other}`, {first} with `{kind}`; what is written goes into one file, which has one form",
            code="E_RECORD_FORM",
            where=name,
            hint="write both with the same columns, or run them apart",
        )


def _form(read: _Read) -> dict[str, str]:
    """Give a file's first record as the example to look at."""
    record = read.record
    return {
        "file": record.file,
        "form": read.form,
        "context": record.verbatim,
        "response": record.response,
    }


def _values(read: _Read) -> tuple[Any, ...]:
    record = read.record
    return (
        record.id,
        str(read.question["id"]) if "id" in read.question else None,
        record.file,
        record.line,
        record.source,
        dump_row(read.question),
        turns_to_json(record.context),
        record.verbatim,
        json.dumps(record.told.kwargs),
        record.response,
        record.correct,
        None if read.reference is None else read.reference.to_json(),
    )


def read_source(journal: Journal, position: int) -> Source:
    """Read a record back."""
    name, file, line, context, verbatim, kwargs, response, reference = journal.db.execute(
        "SELECT name, file, line, context, verbatim, kwargs, response, reference FROM records "
        "WHERE position = ?",
        (position,),
    ).fetchone()
    turns = tuple(turns_from_json(context))
    known = Reference.from_json(reference) if reference is not None else None
    told = Told(kwargs=json.loads(kwargs))
    return Source(position, name, file, line, turns, verbatim, told, response, known)
