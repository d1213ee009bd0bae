"""The scores table an earlier `score` run left, as far as a choice needs it.

In: the path of `scores.parquet`. Out: `Scores`: its columns, and what lies beside it: which records `score` itself left
out, and by which model it scored.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fam_engine.data.parquet import ParquetError, read_parquet_table
from fam_engine.errors import InputError
from fam_engine.measure.familiarity import Metric, columns_of
from fam_engine.measure.statistics import Floats, Ints

# As `score` writes them; the columns of metrics are float64.
_TYPES = {
    "id": pa.string(),
    "file": pa.string(),
    "line": pa.int32(),
    "num_bytes": pa.int32(),
    "source": pa.string(),
    "group": pa.string(),
    "num_response_tokens": pa.int32(),
    "flags": pa.list_(pa.string()),
}
# What earlier releases did not write.
_LATER = {"text_digest": pa.int64()}


@dataclass(frozen=True)
class Scores:
    """The scores table: the columns a choice needs.

    Attributes:
        path: Where it was read.
        table: Its rows, in the order of scoring.
        quarantined: (file, line) -> code and reason of what `score` left out.
        data_hashes: Place of each scored file -> SHA-256 it had, where the run's summary is there.
        settings: Settings of the run, where its summary is there.
    """

    path: Path
    table: pa.Table
    quarantined: Mapping[tuple[str, int], tuple[str, str]]
    data_hashes: Mapping[str, str]
    settings: Mapping[str, Any]

    def text_digests(self) -> Ints | None:
        """Give the digest of each row's prompt and response, int64; None where an earlier release scored."""
        if "text_digest" not in self.table.column_names:
            return None
        digests: Ints = self.table["text_digest"].to_numpy()
        return digests

    def floats(self, name: str) -> Floats:
        """Give a column as float64, NaN where it is null."""
        column = self.table[name].cast(pa.float64())
        values: Floats = column.to_numpy().astype(np.float64, copy=False)
        return values


def read_scores(path: Path, metric: Metric) -> Scores:
    """Read a scores table.

    Args:
        path: `scores.parquet` of a `score` run; its quarantine and summary lie beside it.
        metric: Whose columns are needed.

    Raises:
        InputError: The file is not there, is no such table, or has no column of the metric.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(
            f"{found}, expected the scores.parquet of a `score` run",
            code="E_SCORES",
            where=str(path),
            hint=f"give {path / 'scores.parquet'}" if path.is_dir() else "check the path",
        )
    types = dict.fromkeys(columns_of(metric), pa.float64()) | _TYPES | _LATER
    try:
        table = read_parquet_table(path, list(types))
        _check_columns(path, table.column_names, metric)
        table = table.cast(pa.schema([(name, types[name]) for name in table.column_names]))
    except (ParquetError, pa.ArrowException) as error:
        raise InputError(
            f"does not read as a scores table: {error}",
            code="E_SCORES",
            where=str(path),
            hint="give the scores.parquet of a `score` run",
        ) from None
    _check_rows(path, table)
    hashes, settings = _read_summary(path)
    return Scores(path, table, _read_quarantine(path), hashes, settings)


def _check_columns(path: Path, present: Sequence[str], metric: Metric) -> None:
    for name in _TYPES:
        if name not in present:
            raise InputError(
                f"has no column `{name}`, expected the columns that `score` writes",
                code="E_SCORES",
                where=str(path),
                hint="give the scores.parquet of a `score` run",
            )
    for name in columns_of(metric):
        if name not in present:
            raise InputError(
                f"has no column `{name}`, which the metric `{metric.name}` needs",
                code="E_SCORES_METRIC",
                where=str(path),
                hint=f"score the records again{' with ' if metric.needs else ''}{metric.needs}",
            )


def _check_rows(path: Path, table: pa.Table) -> None:
    needed = [name for name in table.column_names if name in _TYPES | _LATER]
    empty = [name for name in needed if table[name].null_count]
    if empty or not len(table):
        found = f"has rows without `{empty[0]}`" if empty else "holds no scores"
        raise InputError(
            f"{found}, expected what `score` writes",
            code="E_SCORES",
            where=str(path),
            hint="score the records again",
        )


def _read_quarantine(scores: Path) -> dict[tuple[str, int], tuple[str, str]]:
    path = scores.with_name("quarantine.jsonl")
    if not path.is_file():
        return {}
    with _readable(path), path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
        return {(place_of(r["file"]), r["line"]): (r["code"], r["reason"]) for r in rows}


def _read_summary(scores: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Give the hashes of the scored files and the settings of the run."""
    path = scores.with_name("summary.json")
    if not path.is_file():
        return {}, {}
    with _readable(path):
        summary = json.loads(path.read_text(encoding="utf-8"))
        settings = dict(summary.get("settings") or {})
        hashes = (summary.get("key") or {}).get("data") or []
        names = settings.get("data") or []
        return dict(zip(map(place_of, names), hashes, strict=False)), settings


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(
            "does not read as what `score` leaves beside its scores.parquet",
            code="E_SCORES",
            where=str(path),
            hint="keep the files of a `score` run together, as it wrote them",
        ) from None


def place_of(name: str) -> str:
    """Give the absolute path of a file's name, so that `./a.jsonl` and `a.jsonl` are the same."""
    return name if name == "embedded" else os.path.abspath(name)
