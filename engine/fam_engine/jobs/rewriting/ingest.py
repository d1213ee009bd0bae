"""Pass 1 of rewriting: files in, a table of records with what their candidates will be compared with out.

In: data files, a `TextEncoder`. Out: a row a record in the journal. What the model could not read at all is
quarantined, by the rules of every other command; a record whose answer nobody could verify is kept, and keeps its
answer. A pass that was killed starts over; a finished one is never repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args

from fam_engine.data.reading import Row, read_rows
from fam_engine.data.records import Message, Record, detect_form, map_columns, read_record
from fam_engine.data.tokenizer import Encoded, TextEncoder
from fam_engine.errors import InputError, RecordError
from fam_engine.jobs.generation.rows import as_question, find_kind
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.rewriting.references import Reference, find_reference
from fam_engine.jobs.scoring.ingest import DataFile, Quarantined
from fam_engine.measure.answers import TaskKind

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY, id TEXT, name TEXT, file TEXT, line INTEGER, source TEXT, row TEXT,
    context TEXT, verbatim TEXT, response TEXT, correct INTEGER, reference TEXT
);
"""

_CHUNK = 512


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
        response: The given answer.
        reference: What candidates are compared with; None where nothing can be.
    """

    position: int
    name: str | None
    file: str
    line: int
    context: tuple[Message, ...]
    verbatim: str
    response: str
    reference: Reference | None


@dataclass(frozen=True)
class _Read:
    """A row read as a record, with the row its rewritten answer will be written into."""

    form: str
    record: Record
    question: dict[str, Any]
    reference: Reference | None


_Item = tuple[DataFile, Row, _Read | RecordError]


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
    with journal.commit() as db:
        db.execute("DELETE FROM records")
        db.execute("DELETE FROM quarantine")
    position = 0
    forms: dict[str, dict[str, str]] = {}
    items = islice(_items(files, columns), limit)
    while chunk := list(islice(items, _CHUNK)):
        for file, _, item in chunk:
            if isinstance(item, _Read):
                forms.setdefault(file.name, _form(item))
        position += _take(journal, encoder, chunk, position)
        advance(len(chunk))
    if position == 0:
        raise _nothing_usable(files, journal)
    with journal.commit():
        journal.put("ingested", position)
        journal.put("forms", list(forms.values()))


def _items(files: Sequence[DataFile], columns: Mapping[str, str]) -> Iterator[_Item]:
    kinds: dict[str, str] = {}
    for file in files:
        for place in read_rows(file.path):
            if place.columns is None:
                yield file, place, RecordError(place.code or "E_JSON", place.reason or "")
                continue
            try:
                row = map_columns(place.columns, columns)
                if file.name not in kinds:
                    kinds[file.name] = find_kind(row)
                    _check_kinds(kinds)
                yield file, place, _read(file, place.line, row, kinds[file.name])
            except RecordError as error:
                yield file, place, error


def _read(file: DataFile, line: int, row: Mapping[str, Any], kind: str) -> _Read:
    form = detect_form(row)
    record = read_record(row, form, file=file.name, line=line, stem=file.path.stem)
    question = as_question(row, kind)
    if isinstance(row.get("provenance"), Mapping):
        question["provenance"] = row["provenance"]
    return _Read(form.name, record, question, _reference(record, row))


def _reference(record: Record, row: Mapping[str, Any]) -> Reference | None:
    kind: TaskKind | None = row.get("kind")
    if kind is not None and kind not in get_args(TaskKind):
        known = ", ".join(get_args(TaskKind))
        raise RecordError("E_RECORD_FIELD", f"field `kind` is {kind!r}, expected one of {known}")
    choices, tests = (_texts(row, name) for name in ("choices", "tests"))
    return find_reference(record.response, record.answer, choices, tests, kind=kind)


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    value = row.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RecordError("E_RECORD_TYPE", f"field `{name}` is not a list of texts")
    return value


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


# -- keeping ---------------------------------------------------------------------------------------


def _take(journal: Journal, encoder: TextEncoder, chunk: list[_Item], position: int) -> int:
    """Keep a chunk; give how many of its records are usable."""
    encoded = iter(encoder.encode([item.record for _, _, item in chunk if isinstance(item, _Read)]))
    bad: list[Quarantined] = []
    count = 0
    with journal.commit() as db:
        for file, place, item in chunk:
            problem = item if isinstance(item, RecordError) else _problem(next(encoded))
            if problem is not None:
                bad.append((file.name, place.line, place.offset, problem.code, problem.reason))
                continue
            assert isinstance(item, _Read)
            values = (position + count, *_values(item))
            db.execute(f"INSERT INTO records VALUES ({', '.join('?' * len(values))})", values)
            count += 1
        journal.quarantine(bad)
    return count


def _problem(encoded: Encoded | RecordError) -> RecordError | None:
    """Say why a model could not read a record, if so."""
    if isinstance(encoded, RecordError):
        return encoded
    if "first_token_unscored" in encoded.flags:
        return RecordError("E_EMPTY_PROMPT", "the prompt is empty and the model has no BOS")
    return None


def _values(read: _Read) -> tuple[Any, ...]:
    record = read.record
    return (
        record.id,
        str(read.question["id"]) if "id" in read.question else None,
        record.file,
        record.line,
        record.source,
        json.dumps(read.question, default=str),
        json.dumps([[turn.role, turn.content] for turn in record.context]),
        record.verbatim,
        record.response,
        record.correct,
        None if read.reference is None else read.reference.to_json(),
    )


def read_source(journal: Journal, position: int) -> Source:
    """Read a record back."""
    name, file, line, context, verbatim, response, reference = journal.db.execute(
        "SELECT name, file, line, context, verbatim, response, reference FROM records "
        "WHERE position = ?",
        (position,),
    ).fetchone()
    turns = tuple(Message(role, content) for role, content in json.loads(context))
    known = Reference.from_json(reference) if reference is not None else None
    return Source(position, name, file, line, turns, verbatim, response, known)


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
