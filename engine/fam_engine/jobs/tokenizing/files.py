"""The ids of tokenized records as a file.

In: the journal and the spool of pass 1. Out: `ids.jsonl` or `ids.parquet`, a row a record in input order, whole or
absent. What a record is conditioned on, what is scored and what ends the turn are three columns: joined they are what a
model reads, and nobody has to guess the boundary.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from fam_engine._rust_tokenize import Spool
from fam_engine.data.json_lines import write_json_lines
from fam_engine.jobs.scoring.files import write_table

_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int32()),
        ("context_ids", _IDS),
        ("response_ids", _IDS),
        ("end_of_turn_ids", _IDS),
        ("flags", pa.list_(pa.string())),
    ]
)


def write_ids(path: Path, db: sqlite3.Connection, spool: Spool) -> None:
    """Write the ids, as JSON Lines or Parquet by the file's ending."""
    rows = _rows(db, spool)
    if path.suffix == ".parquet":
        write_table(path, SCHEMA, rows)
    else:
        write_json_lines(path, rows)


def _rows(db: sqlite3.Connection, spool: Spool) -> Iterator[dict[str, Any]]:
    num_eot = spool.index()["num_eot"]
    query = "SELECT id, file, line, entry, flags FROM records ORDER BY position"
    for name, file, line, entry, flags in db.execute(query):
        context, targets = spool.read(entry)
        end = len(targets) - int(num_eot[entry])
        yield {
            "id": name,
            "file": file,
            "line": line,
            "context_ids": context,
            "response_ids": targets[:end],
            "end_of_turn_ids": targets[end:],
            "flags": json.loads(flags),
        }
