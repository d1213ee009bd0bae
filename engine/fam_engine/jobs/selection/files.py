"""What a selection leaves: the chosen records, the ids and reasons of the others.

In: the choice, and the data files to copy from. Out: `selected.jsonl` and `dropped.parquet`, each whole or
absent. A record is written with the columns it came with; under `--map` with the mapped names, so that other
commands read the file without it. Added are its `id` and `source` where it had none, since their defaults would
change with the file, and in `provenance` what it was selected by; a `provenance` that is no object becomes `original`
in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fam_engine.data.files import write_whole
from fam_engine.data.json_lines import write_json_lines
from fam_engine.errors import InputError, RecordError
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
    where = ""

    def records() -> Iterator[Mapping[str, Any]]:
        nonlocal where
        for place, name, line, columns in rows:
            where = f"{name}:{line}"
            yield _labelled(columns, labels(place))
            advance(1)

    try:
        write_json_lines(path, records())
    except RecordError as error:
        raise InputError(
            error.reason,
            code=error.code,
            where=where,
            hint="leave that column out of the Parquet file",
        ) from None


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
