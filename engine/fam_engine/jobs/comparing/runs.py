"""A finished run as far as a comparison needs it: the rows of its table, and the settings beside it.

In: the folder of a `score` or `eval` run, or its table. Out: a `Run`. An answer of a score run has its id, that of an
evaluation belongs to a task and a model; which row of another run is the same record, `pairing` finds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
# Needed only for ids that repeat or that nobody wrote.
_PLACES: Final = ("file", "line")


@dataclass(frozen=True)
class Run:
    """A run's rows.

    Attributes:
        path: Its table.
        kind: The command that wrote it.
        ids: Of the rows, as their user gave them.
        scopes: What the ids belong to: nothing, or of an evaluation the task, after `tell_models` the model too.
        sources: Of the rows; of an evaluation the tasks.
        groups: The questions; of an evaluation each its own.
        models: Of an evaluation, else empty names.
        files: As the run was given them; empty where the table does not say.
        lines: In the files; likewise.
        metrics: Column -> float64[n], NaN where null.
        settings: Of the run, what they decided included; empty where its summary is gone.
        hashes: SHA-256 of each file whose it is known, by the name it was given.
    """

    path: Path
    kind: Kind
    ids: Sequence[str]
    scopes: Sequence[tuple[str, ...]]
    sources: Sequence[str]
    groups: Sequence[str]
    models: Sequence[str]
    files: Sequence[str]
    lines: Sequence[str]
    metrics: Mapping[str, Floats]
    settings: Mapping[str, Any]
    hashes: Mapping[str, str]


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
    ids, sources, third, files, lines = (
        table[name].to_pylist() for name in (*_LABELS[kind], *_PLACES)
    )
    is_eval = kind == "eval"
    settings = _read_settings(table_path)
    return Run(
        path=table_path,
        kind=kind,
        ids=ids,
        # The source of an answer is a label, the task of a question is not.
        scopes=[(task,) for task in sources] if is_eval else [()] * len(ids),
        sources=sources,
        # As `eval` counts them: a row of a task is a question, though its id may repeat.
        groups=list(map("\0".join, zip(sources, ids, files, lines, strict=True)))
        if is_eval
        else third,
        models=third if is_eval else [""] * len(ids),
        files=files,
        lines=lines,
        metrics={name: _floats(table[name]) for name in _METRICS[kind]},
        settings=settings,
        hashes=dict(zip(settings.get("data") or (), settings.get("key.data") or (), strict=False)),
    )


def tell_models(first: Run, second: Run) -> tuple[Run, Run]:
    """Tell models apart by name, unless each run has one: these are compared whatever they are called."""
    if len(set(first.models)) == len(set(second.models)) == 1:
        return first, second
    return _with_models(first), _with_models(second)


def _with_models(run: Run) -> Run:
    pairs = list(zip(run.models, run.sources, strict=True))
    return replace(run, scopes=pairs, sources=[f"{model}: {task}" for model, task in pairs])


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
        table = read_parquet_table(path, [*types, *_PLACES])
        missing = [name for name in types if name not in table.column_names]
        if missing:
            raise ParquetError(f"it has no column `{missing[0]}`")
        columns = {name: _cast(table[name], kind_of) for name, kind_of in types.items()}
        columns |= {name: _text(table, name) for name in _PLACES}
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


def _text(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        return pa.repeat("", len(table))
    return table[name].cast(pa.string()).fill_null("")


def _floats(column: pa.ChunkedArray) -> Floats:
    values: Floats = column.to_numpy().astype(np.float64, copy=False)
    return values


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
