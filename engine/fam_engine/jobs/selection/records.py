"""The records to choose from, as columns: what a choice needs to know of each, and none of their text.

In: data files. Out: `RecordColumns`, about a hundred bytes a record, and what could not be read. `selected_rows`
reads the files a second time for the texts of what was chosen, so a million records need no more memory than their
labels.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fam_engine.data.reading import Row, read_rows
from fam_engine.data.records import (
    Record,
    RecordForm,
    detect_form,
    map_columns,
    mapped_row,
    read_record,
)
from fam_engine.errors import InputError, RecordError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.quarantine import Quarantined, nothing_usable
from fam_engine.measure.statistics import Ints

_IDS_A_CHUNK = 65536
WRONG, RIGHT, UNKNOWN = 0, 1, -1


@dataclass(frozen=True)
class RecordColumns:
    """What is known of n readable records, in input order.

    Attributes:
        files: The data files.
        ids: string[n].
        file: int64[n], place in `files`.
        line: int64[n], from 1.
        position: int64[n], place among all rows read, bad ones counted.
        num_bytes: int64[n], UTF-8 bytes of the response; -1 where only a template says what it is.
        correct: int64[n]: `RIGHT`, `WRONG` or `UNKNOWN`.
        text_digest: int64[n], of everything the model would read: prompt and response. A million
            collide by chance once in 37 million runs.
        response_cut: bool[n], a response that ends because its writer had no tokens left.
        num_read: Rows read, bad ones counted.
        quarantined: Rows that hold no usable record.
        forms: Name of each file -> how its rows are written.
    """

    files: tuple[DataFile, ...]
    ids: pa.ChunkedArray
    file: Ints
    line: Ints
    position: Ints
    num_bytes: Ints
    correct: Ints
    text_digest: Ints
    response_cut: npt.NDArray[np.bool_]
    num_read: int
    quarantined: list[Quarantined]
    forms: dict[str, str]


def read_columns(
    files: tuple[DataFile, ...],
    *,
    columns: Mapping[str, str],
    limit: int | None,
    advance: Callable[[int], None],
) -> RecordColumns:
    """Read the labels of all records.

    Args:
        files: Where from.
        columns: Record field -> column, from `--map`.
        limit: Read no more rows than this.
        advance: Called with the number of rows read since the last call.

    Raises:
        InputError: No row is usable, or the files are written in different forms.
    """
    forms: dict[str, RecordForm] = {}
    gathered = _Gathered()
    for index, row, record in iterate_records(files, columns, limit, forms):
        if isinstance(record, RecordError):
            place = files[index].name, row.line, row.offset
            gathered.quarantined.append((*place, record.code, record.reason))
        else:
            gathered.add(index, record, row)
        gathered.num_read += 1
        if gathered.num_read % 1024 == 0:
            advance(1024)
    advance(gathered.num_read % 1024)
    _check_forms(forms)
    if not gathered.line:
        raise nothing_usable(files, next(iter(gathered.quarantined), None))
    return gathered.finish(files, {name: form.name for name, form in forms.items()})


def selected_rows(
    files: Sequence[DataFile], columns: Mapping[str, str], chosen: Ints
) -> Iterator[tuple[int, str, int, Mapping[str, Any]]]:
    """Read the chosen rows again.

    Args:
        files: Where from.
        columns: Record field -> column, from `--map`.
        chosen: int64[k], positions among all rows, ascending.

    Yields:
        Place in `chosen`, file, line, and the row's columns, mapped.
    """
    wanted = iter(enumerate(chosen.tolist()))
    place, position = next(wanted, (-1, -1))
    rows = ((file.name, row) for file in files for row in read_rows(file.path))
    for number, (file, row) in enumerate(rows):
        if place < 0:
            return
        if number == position:
            assert row.columns is not None, "a chosen row was readable the first time"
            yield place, file, row.line, map_columns(row.columns, columns)
            place, position = next(wanted, (-1, -1))


def iterate_records(
    files: Sequence[DataFile],
    columns: Mapping[str, str],
    limit: int | None,
    forms: dict[str, RecordForm] | None = None,
) -> Iterator[tuple[int, Row, Record | RecordError]]:
    """Give every row as a record, or what is wrong with it.

    Args:
        files: Where from.
        columns: Record field -> column, from `--map`.
        limit: Give no more rows than this.
        forms: Takes the name of each file -> how its rows are written.

    Yields:
        Place of the file, the row, and the record or the error.
    """
    found: dict[str, RecordForm] = {} if forms is None else forms
    rows = ((index, row) for index, file in enumerate(files) for row in read_rows(file.path))
    for index, row in islice(rows, limit):
        try:
            yield index, row, _record(files[index], row, columns, found)
        except RecordError as error:
            yield index, row, error


def _record(
    file: DataFile, row: Row, columns: Mapping[str, str], forms: dict[str, RecordForm]
) -> Record:
    mapped = mapped_row(row, columns)
    if file.name not in forms:
        forms[file.name] = detect_form(mapped)
    return read_record(mapped, forms[file.name], file=file.name, line=row.line, stem=file.stem)


@dataclass
class _Gathered:
    """Columns while they grow."""

    ids: list[pa.Array] = field(default_factory=list)
    last_ids: list[str] = field(default_factory=list)
    file: array[int] = field(default_factory=lambda: array("q"))
    line: array[int] = field(default_factory=lambda: array("q"))
    position: array[int] = field(default_factory=lambda: array("q"))
    num_bytes: array[int] = field(default_factory=lambda: array("q"))
    correct: array[int] = field(default_factory=lambda: array("q"))
    text_digest: array[int] = field(default_factory=lambda: array("q"))
    response_cut: array[int] = field(default_factory=lambda: array("b"))
    quarantined: list[Quarantined] = field(default_factory=list)
    num_read: int = 0

    def add(self, index: int, record: Record, row: Row) -> None:
        self.last_ids.append(record.id)
        if len(self.last_ids) == _IDS_A_CHUNK:
            self._flush()
        self.file.append(index)
        self.line.append(record.line)
        self.position.append(self.num_read)
        turn = record.answer_turn()
        is_known = not (turn.is_written or turn.has_parts)  # else a template makes or joins it
        self.num_bytes.append(len(record.response.encode()) if is_known else -1)
        self.correct.append(UNKNOWN if record.correct is None else int(record.correct))
        self.text_digest.append(record.text_digest())
        self.response_cut.append(_was_cut(row.columns or {}))

    def finish(self, files: tuple[DataFile, ...], forms: dict[str, str]) -> RecordColumns:
        self._flush()
        return RecordColumns(
            files=files,
            ids=pa.chunked_array(self.ids, pa.string()),
            file=np.array(self.file, np.int64),
            line=np.array(self.line, np.int64),
            position=np.array(self.position, np.int64),
            num_bytes=np.array(self.num_bytes, np.int64),
            correct=np.array(self.correct, np.int64),
            text_digest=np.array(self.text_digest, np.int64),
            response_cut=np.array(self.response_cut, np.bool_),
            num_read=self.num_read,
            quarantined=self.quarantined,
            forms=forms,
        )

    def _flush(self) -> None:
        self.ids.append(pa.array(self.last_ids, pa.string()))
        self.last_ids = []


def _was_cut(columns: Mapping[str, Any]) -> bool:
    """Say whether whoever generated the response noted that it ran out of tokens."""
    provenance = columns.get("provenance")
    return isinstance(provenance, Mapping) and provenance.get("finish_reason") == "length"


def _check_forms(forms: Mapping[str, RecordForm]) -> None:
    """Refuse files of different forms: the one file that comes out must have one form."""
    first = next(iter(forms.items()), None)
    for name, form in forms.items():
        if first is not None and form is not first[1]:
            raise InputError(
                f"is of the form `{form.name}`, {first[0]} of `{first[1].name}`; what is selected "
                "goes into one file, which has one form",
                code="E_RECORD_FORM",
                where=name,
                hint="write both with the same columns",
            )
