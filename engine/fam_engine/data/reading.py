"""Files in, rows out, one bad row never stopping the rest.

In: paths to JSON Lines, arrays of JSON, both also compressed, or Parquet. Out: `Row`s in file order, each with its
place and either its columns or what is wrong with it. JSON Lines go through our own strict reader in Rust (exact line
and byte of every fault, memory bounded by the longest line), arrays by way of it (`json_arrays`); what is compressed is
decompressed as they ask for it (`compressed`). Parquet goes through pyarrow in a child process (`parquet`), one row
group at a time, which stays flat where whole-file readers do not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fam_engine._rust_tokenize import JsonLinesReader
from fam_engine.data.compressed import (
    COMPRESSED_SUFFIXES,
    CompressedFile,
    check_compression,
    is_compressed,
    uncompressed_name,
)
from fam_engine.data.json_arrays import Line, holds_array, read_array
from fam_engine.data.parquet import read_parquet
from fam_engine.errors import NOT_UTF8_HINT, InputError, is_utf8

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
_LINES_A_READ = 1024
# An object, a carriage return alone and the next object, where no line has ended by then.
_OLD_LINE_END = re.compile(rb"\}\r+\{")
_BYTES_LOOKED_AT = 1 << 16


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        line: Line, element or row number, from 1.
        offset: Byte where it starts, of the content where the file is compressed; None in Parquet.
        columns: Its values; None if it could not be read.
        code: What was wrong, as a stable name.
        reason: What was wrong, in words.
    """

    line: int
    offset: int | None
    columns: Mapping[str, Any] | None
    code: str | None = None
    reason: str | None = None


def check_file(name: str) -> Path:
    """Make sure a data file is there and of a kind we read.

    Raises:
        InputError: It is not.
    """
    path = Path(name)
    if not is_utf8(name):
        raise InputError(
            "has a name that is not UTF-8", code="E_INPUT_FILE", where=name, hint=NOT_UTF8_HINT
        )
    if not path.is_file():
        found = "is not a plain file" if path.exists() else "does not exist"
        is_stream = name == "-" or (path.exists() and not path.is_dir())
        hint = (
            "write it to a file first: records are read more than once, a pipe gives them once"
            if is_stream
            else "check the path"
        )
        raise InputError(found, code="E_INPUT_FILE", where=name, hint=hint)
    bare = uncompressed_name(path)
    if bare.suffix.lower() not in JSON_SUFFIXES + (PARQUET_SUFFIXES if bare == path else ()):
        raise InputError(
            f"has the ending `{bare.suffix}{path.suffix if bare != path else ''}`, expected "
            f"{', '.join(JSON_SUFFIXES)} (JSON Lines; in .json also one array), these also with "
            f"{' or '.join(COMPRESSED_SUFFIXES)} behind it, or {', '.join(PARQUET_SUFFIXES)}",
            code="E_INPUT_KIND",
            where=name,
            hint="rename or convert it",
        )
    if path.suffix.lower() not in PARQUET_SUFFIXES:
        with reading_errors(path):
            check_compression(name)
            _check_line_ends(path)
    return path


def _check_line_ends(path: Path) -> None:
    """Refuse lines that end as on a Mac before 2001: they would all be one."""
    with path.open("rb") as file:
        start = file.read(_BYTES_LOOKED_AT)
    if b"\n" not in start and _OLD_LINE_END.search(start):
        raise InputError(
            "has lines that end with a carriage return (\\r), expected a line feed (\\n)",
            code="E_INPUT_KIND",
            where=str(path),
            hint=r"convert it: tr '\r' '\n' < OLD > NEW",
        )


def data_stem(path: Path) -> str:
    """Give the name of a data file without its endings: `a` for `a.jsonl` and for `a.jsonl.gz`."""
    return uncompressed_name(path).stem


def is_json_lines(path: Path) -> bool:
    """Whether a file holds JSON Lines, compressed or not; what is called `.json` may also hold one array.

    Raises:
        InputError: It cannot be read.
    """
    suffix = uncompressed_name(path).suffix.lower()
    if suffix != ".json":
        return suffix in JSON_SUFFIXES
    with reading_errors(path):
        return not holds_array(path)


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file row by row.

    Raises:
        InputError: The file as a whole cannot be read.
    """
    if path.suffix.lower() in PARQUET_SUFFIXES:
        yield from _read_parquet(path)
    else:
        yield from _read_json(path)


def open_lines(path: Path) -> JsonLinesReader:
    """Open JSON Lines, compressed or not.

    Raises:
        OSError: They cannot be opened.
    """
    return JsonLinesReader(path, file=CompressedFile(path) if is_compressed(path) else None)


def hash_file(path: Path) -> str:
    """Give the SHA-256 of a file's bytes as they are on disk, in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", code="E_INPUT_FILE", where=str(path)
        ) from None


def read_line(line: Line) -> Row:
    """Read one line of JSON Lines, as Rust gives it."""
    number, offset, text, code, reason = line
    return Row(number, offset, json.loads(text) if text is not None else None, code, reason)


@contextlib.contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn what the system says while a file is read into an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}", code="E_INPUT_FILE", where=str(path)
        ) from None


def _read_json(path: Path) -> Iterator[Row]:
    with reading_errors(path):
        for line in _read_lines(path) if is_json_lines(path) else read_array(path):
            yield read_line(line)


def _read_lines(path: Path) -> Iterator[Line]:
    reader = open_lines(path)
    while batch := reader.read_batch(_LINES_A_READ):
        yield from batch


def _read_parquet(path: Path) -> Iterator[Row]:
    for line, row in enumerate(read_parquet(path), 1):
        if isinstance(row, str):
            yield Row(line, None, None, "E_PARQUET_VALUE", row)
        else:
            yield Row(line, None, {name: _or_null(value) for name, value in row.items()})


def _or_null(value: Any) -> Any:  # noqa: ANN401 - any value
    """Give a value, None for NaN: JSON has no NaN, and some writers put it where a text or number is missing."""
    return None if isinstance(value, float) and math.isnan(value) else value
