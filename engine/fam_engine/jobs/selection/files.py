"""What a selection leaves: the chosen records, the ids and reasons of the others, what could not be read.

In: the choice, and the data files to copy from. Out: `selected.jsonl`, `dropped.parquet`, `quarantine.jsonl`, each
whole or absent. A record is written with the columns it came with; under `--map` with the mapped names, so that other
commands read the file without it. Added are its `id` and `source` where it had none, since their defaults would
change with the file, and in `provenance` what it was selected by; a `provenance` that is no object becomes `original`
in one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fam_engine.data.files import write_whole
from fam_engine.errors import InputError
from fam_engine.jobs.scoring.ingest import Quarantined
from fam_engine.jobs.selection.choice import REASONS, Codes

DROPPED_SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string())])


def write_selected(
    path: Path,
    rows: Iterator[tuple[int, str, int, Mapping[str, Any]]],
    labels: Callable[[int], Mapping[str, Any]],
    advance: Callable[[int], None],
) -> None:
    """Write the chosen records.

    Args:
        path: Where to.
        rows: Place among the chosen, file, line and columns of each.
        labels: Place among the chosen -> `id`, `source`, and `selected_by` for its provenance.
        advance: Called after each record.

    Raises:
        InputError: A column holds what JSON cannot.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for place, name, line, columns in rows:
                record = _labelled(columns, labels(place))
                file.write(_json_line(record, f"{name}:{line}"))
                advance(1)

    write_whole(path, write)


def _labelled(columns: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
    record = dict(columns)
    for name in ("id", "source"):
        if record.get(name) is None:
            record[name] = labels[name]
    earlier = record.get("provenance")
    if not isinstance(earlier, Mapping):
        earlier = {} if earlier is None else {"original": earlier}
    record["provenance"] = {**earlier, "selected_by": labels["selected_by"]}
    return record


def _json_line(record: Mapping[str, Any], where: str) -> str:
    try:
        line = _dumped(record)
    except TypeError as error:
        raise InputError(
            f"{error}, which JSON cannot hold",
            code="E_RECORD_JSON",
            where=where,
            hint="leave that column out of the Parquet file",
        ) from None
    # A lone surrogate in some other column cannot be written as UTF-8, only spelled out.
    return f"{line if _is_utf8(line) else json.dumps(json.loads(line))}\n"


def _dumped(record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False, default=_written)
    except ValueError:
        plain = _without_nan(record)
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, default=_written)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _written(value: object) -> str:
    """Write what Parquet has and JSON has not: dates and times as ISO 8601."""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise TypeError(f"a column holds {type(value).__name__}")


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Turn NaN and infinity, which Parquet may hold, into null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    # A map of Parquet is a list of tuples.
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def write_dropped(path: Path, ids: pa.Array, reasons: Codes) -> None:
    """Write id and reason of every record that was not chosen, in input order.

    Args:
        path: Where to.
        ids: string[n], of all scored records.
        reasons: int8[n], places in `REASONS`; 0 is chosen.
    """
    dropped = np.flatnonzero(reasons)
    named = pa.DictionaryArray.from_arrays(pa.array(reasons[dropped]), pa.array(REASONS))
    table = pa.Table.from_arrays(
        [ids.take(pa.array(dropped)), named.cast(pa.string())], schema=DROPPED_SCHEMA
    )
    write_whole(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def write_quarantine(path: Path, rows: Sequence[Quarantined]) -> None:
    """Write what could not be used: a line a row, of file, line, offset, code, reason."""
    names = ("file", "line", "offset", "code", "reason")

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False))
                file.write("\n")

    write_whole(path, write)
