"""Rows as JSON Lines that every reader of JSON and UTF-8 reads back, whatever data file they are from.

In: rows. Out: a line a row. What Parquet and tables in memory have and JSON has not becomes its nearest: NaN, infinity
and what pandas has for a missing value null, dates and times texts of ISO 8601, numbers and arrays of numpy numbers and
lists. Half of a surrogate pair, which UTF-8 cannot hold, is spelled out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from fam_engine.data.files import write_whole
from fam_engine.errors import RecordError

# Types of what pandas has for a missing value, by name: it is no dependency.
_MISSING: Final = ("NAType", "NaTType")


def dump_row(row: Mapping[str, Any], *, ensure_ascii: bool = False) -> str:
    """Give a row as JSON; `ensure_ascii` spells out all that is not ASCII.

    Raises:
        RecordError: It holds what JSON cannot, such as bytes.
    """
    try:
        return json.dumps(row, ensure_ascii=ensure_ascii, allow_nan=False, default=_written)
    except ValueError:
        plain = _without_nan(row)
        return json.dumps(plain, ensure_ascii=ensure_ascii, allow_nan=False, default=_written)


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


def _written(value: object) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, np.generic | np.ndarray):
        return _of_numpy(value)
    if type(value).__name__ in _MISSING:
        return None
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise _no_json(value)


def _of_numpy(value: np.generic | np.ndarray[Any, Any]) -> Any:  # noqa: ANN401 - what lists and numbers are
    if value.dtype.kind not in "mM":
        return value.tolist()
    if isinstance(value, np.ndarray):
        return list(value)  # by `tolist`, times of nanoseconds would be numbers
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    raise _no_json(value)


def _no_json(value: object) -> RecordError:
    kind = type(value).__name__
    return RecordError("E_RECORD_JSON", f"a column holds {kind}, which JSON cannot hold")


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, np.generic | np.ndarray):
        value = _of_numpy(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    # A map of Parquet is a list of tuples.
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
