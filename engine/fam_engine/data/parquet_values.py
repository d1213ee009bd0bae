"""Rows of Parquet as values of Python.

In: a batch of pyarrow. Out: its rows as dicts, or the exception of what has no value in Python. Dates and times that
Python's own types cannot hold come as text, so that a column nobody reads costs no row: nanoseconds, which pyarrow
hands over only where pandas is installed (and which are text where it is, too), what lies beyond the calendar, and time
zones that this machine does not know, told in UTC.
"""

from __future__ import annotations

from typing import Any, Final

# Said of a time: pyarrow's own errors are ValueErrors; KeyError is that of a time zone unknown here.
_NO_VALUE: Final = (ValueError, OverflowError, KeyError)


def rows_of(batch: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - pyarrow is untyped
    """Give the rows of a batch.

    Raises:
        ArrowException, ValueError, OverflowError: A value is none of Python's.
    """
    names = batch.schema.names
    columns = [_values(column) for column in batch.columns]
    if not columns:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:  # noqa: ANN401
    from pyarrow.types import is_interval, is_temporal

    kind = column.type
    if is_interval(kind) or not is_temporal(kind):
        return list(column.to_pylist())
    if getattr(kind, "unit", None) == "ns":
        return _texts(column)
    try:
        return list(column.to_pylist())
    except _NO_VALUE:
        return [_value(*pair) for pair in zip(column, _texts(column), strict=True)]


def _value(scalar: Any, text: str | None) -> Any:  # noqa: ANN401
    try:
        return scalar.as_py()
    except _NO_VALUE:
        return text


def _texts(column: Any) -> list[str | None]:  # noqa: ANN401
    import pyarrow

    try:
        return list(column.cast(pyarrow.string()).to_pylist())
    except pyarrow.ArrowInvalid:
        if getattr(column.type, "tz", None) is None:
            raise
        in_utc = column.cast(pyarrow.timestamp(column.type.unit, "UTC"))
        return list(in_utc.cast(pyarrow.string()).to_pylist())
