"""Rows as JSON Lines that every reader of JSON and UTF-8 reads back, whatever data file they are from.

In: rows. Out: a line a row. What Parquet has and JSON has not becomes its nearest: NaN and infinity null, dates and
times texts of ISO 8601. Half of a surrogate pair, which UTF-8 cannot hold, is spelled out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fam_engine.data.files import write_whole
from fam_engine.errors import RecordError


def dump_row(row: Mapping[str, Any]) -> str:
    """Give a row as JSON.

    Raises:
        RecordError: It holds what JSON cannot, such as bytes.
    """
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_written)
    except ValueError:
        plain = _without_nan(row)
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, default=_written)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a line a row, all of them or, where one cannot be given or written, no file.

    Raises:
        RecordError: A row holds what JSON cannot.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(map(json_line, rows))

    write_whole(path, write)


def json_line(row: Mapping[str, Any]) -> bytes:
    """Give a row as a line of UTF-8; raises as `dump_row`."""
    text = dump_row(row)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(json.loads(text))}\n".encode()


def _written(value: object) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    kind = type(value).__name__
    raise RecordError("E_RECORD_JSON", f"a column holds {kind}, which JSON cannot hold")


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    # A map of Parquet is a list of tuples.
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
