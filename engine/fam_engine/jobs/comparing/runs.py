"""A finished run as far as a comparison needs it: the rows of its table, and the settings beside it.

In: the folder of a `score` or `eval` run, or its table. Out: a `Run`. Answers of a score run are known by their id,
those of an evaluation by model, task and id; where an id comes twice, its first row belongs to the first, and so on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from fam_engine.data.parquet import ParquetError, read_parquet_table
from fam_engine.errors import InputError
from fam_engine.measure.statistics import Floats

Kind = Literal["score", "eval"]
_TABLES: Final[dict[str, Kind]] = {"scores.parquet": "score", "samples.parquet": "eval"}
_METRICS: Final[dict[Kind, tuple[str, ...]]] = {
    "score": ("nll_mean", "bits_per_byte"),
    "eval": ("correct",),
}
_LABELS: Final[dict[Kind, tuple[str, ...]]] = {
    "score": ("id", "source", "group"),
    "eval": ("id", "task", "model"),
}


@dataclass(frozen=True)
class Run:
    """A run's rows.

    Attributes:
        path: Its table.
        kind: The command that wrote it.
        ids: Of the rows, as their user gave them.
        keys: What rows of two runs are joined by; each once.
        sources: Of the rows; of an evaluation the tasks.
        groups: The questions; of an evaluation each its own.
        metrics: Column -> float64[n], NaN where null.
        num_repeated: Rows whose id another row has too.
        settings: Of the run, what they decided included; empty where its summary is gone.
    """

    path: Path
    kind: Kind
    ids: Sequence[str]
    keys: Sequence[tuple[str, ...]]
    sources: Sequence[str]
    groups: Sequence[str]
    metrics: Mapping[str, Floats]
    num_repeated: int
    settings: Mapping[str, Any]


def read_run(path: Path) -> Run:
    """Read a run.

    Args:
        path: Its folder, or `scores.parquet` or `samples.parquet` in it.

    Raises:
        InputError: There is none, or it does not read.
    """
    table_path = _find_table(path)
    kind: Kind = _TABLES.get(table_path.name, "score")
    table = _read_table(table_path, kind)
    ids, sources, third = (table[name].to_pylist() for name in _LABELS[kind])
    # One model a run is compared with the other run's, whatever they are called.
    models = third if kind == "eval" and len(set(third)) > 1 else [""] * len(ids)
    keys, num_repeated = _numbered(_places(kind, ids, sources, models))
    return Run(
        path=table_path,
        kind=kind,
        ids=ids,
        keys=keys,
        sources=_sources(sources, models),
        groups=third if kind == "score" else list(map("\0".join, zip(sources, ids, strict=True))),
        metrics={name: _floats(table[name]) for name in _METRICS[kind]},
        num_repeated=num_repeated,
        settings=_read_settings(table_path),
    )


def _places(
    kind: Kind, ids: list[str], sources: list[str], models: list[str]
) -> list[tuple[str, ...]]:
    """Give what a row is known by. The source of an answer is a label, the task of a question is not."""
    if kind == "score":
        return [(one,) for one in ids]
    return list(zip(models, sources, ids, strict=True))


def _sources(sources: list[str], models: list[str]) -> list[str]:
    if not any(models):
        return sources
    return [f"{model}: {task}" for model, task in zip(models, sources, strict=True)]


def _find_table(path: Path) -> Path:
    for name in _TABLES:
        if (path / name).is_file():
            return path / name
    if path.is_file():
        return path
    raise InputError(
        f"holds neither {' nor '.join(_TABLES)}" if path.is_dir() else "does not exist",
        code="E_COMPARE_RUN",
        where=str(path),
        hint="give the --out of a finished `score` or `eval` run",
    )


def _read_table(path: Path, kind: Kind) -> pa.Table:
    types = dict.fromkeys(_LABELS[kind], pa.string()) | dict.fromkeys(_METRICS[kind], pa.float64())
    try:
        table = read_parquet_table(path, list(types))
        missing = [name for name in types if name not in table.column_names]
        if missing:
            raise ParquetError(f"it has no column `{missing[0]}`")
        columns = {name: _cast(table[name], kind_of) for name, kind_of in types.items()}
    except (ParquetError, pa.ArrowException) as error:
        raise InputError(
            f"does not read as the table of a `{kind}` run: {error}",
            code="E_COMPARE_RUN",
            where=str(path),
            hint="give the --out of a finished `score` or `eval` run",
        ) from None
    table = pa.table(columns)
    empty = [name for name in _LABELS[kind] if table[name].null_count]
    if empty or not len(table):
        raise InputError(
            f"has rows without `{empty[0]}`" if empty else "holds no rows",
            code="E_COMPARE_RUN",
            where=str(path),
            hint="give the --out of a run that came to an end",
        )
    return table


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    # Arrow turns true and false into floats only by way of integers.
    return (
        column.cast(pa.int8()).cast(kind) if pa.types.is_boolean(column.type) else column.cast(kind)
    )


def _floats(column: pa.ChunkedArray) -> Floats:
    values: Floats = column.to_numpy().astype(np.float64, copy=False)
    return values


def _numbered(places: Sequence[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], int]:
    """Add to each the number of equal ones before it; count those that are not alone."""
    seen: Counter[tuple[str, ...]] = Counter()
    keys = []
    for place in places:
        keys.append((*place, str(seen[place])))
        seen[place] += 1
    return keys, sum(count for count in seen.values() if count > 1)


def _read_settings(table: Path) -> dict[str, Any]:
    path = table.with_name("summary.json")
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        # Where both name one, such as the model, the key has its hash.
        key = {f"key.{name}": value for name, value in (summary.get("key") or {}).items()}
        settings = dict(summary["settings"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(
            "does not read as the summary of a run",
            code="E_COMPARE_RUN",
            where=str(path),
            hint="put it back as the run wrote it, or remove it",
        ) from None
    return settings | {
        name: value for name, value in key.items() if _is_news(name, value, settings)
    }


def _is_news(name: str, value: object, settings: Mapping[str, Any]) -> bool:
    plain = name.removeprefix("key.")
    return plain not in settings or settings[plain] != value
