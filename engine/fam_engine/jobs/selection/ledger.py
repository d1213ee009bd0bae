"""A ledger of past trainings: a CSV file in, cells to judge metrics on out.

Columns: `model`, `task`, `variant` (text; together they name a line), `accuracy` or `acc_mean` (a share between 0 and
1, empty where unknown), and one column a metric, named as in the scores table, or `ppl`, `icppl` or `icppl3`,
`logprob`, `reward`, `skywork`, `car`. A metric of another name says which values are the familiar ones: `NAME:lowest`
or `NAME:highest`. Every other column is left aside and named in the result. An empty value is an unknown one; `inf`
counts as larger than all.

A ledger is short and every line matters, so the first bad line ends the reading.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fam_engine.config import nearest
from fam_engine.errors import InputError
from fam_engine.measure.familiarity import METRICS, Direction
from fam_engine.measure.replay import Cell

_NAMES = ("model", "task", "variant")
_ACCURACY = ("accuracy", "acc_mean")
# What other ledgers call the metrics, and their own two kinds: summed log-prob and reward models.
_ALIASES: dict[str, tuple[str, Direction]] = {
    "ppl": ("perplexity", "lowest"),
    "icppl": ("in_context_perplexity", "lowest"),
    "icppl3": ("in_context_perplexity", "lowest"),
    "logprob": ("logprob", "highest"),
    "reward": ("reward", "highest"),
    "skywork": ("skywork", "highest"),
    "car": ("car", "highest"),
}


@dataclass(frozen=True)
class Ledger:
    """A ledger that was read.

    Attributes:
        cells: Models and tasks with at least two variants whose accuracy and metrics are all known.
        directions: Metric -> which values are the familiar ones.
        left_out: Lines without an accuracy, lines without a metric (by metric), cells too small.
        ignored_columns: Columns that are neither.
    """

    cells: tuple[Cell, ...]
    directions: dict[str, Direction]
    left_out: dict[str, int]
    ignored_columns: tuple[str, ...]


@dataclass(frozen=True)
class _Line:
    number: int
    values: dict[str, str]


def read_ledger(path: Path) -> Ledger:
    """Read a ledger.

    Raises:
        InputError: The file or one of its lines cannot be used; the message names the line.
    """
    lines = _read_lines(path)
    accuracy, metrics = _columns(path, list(lines[0].values))
    taken = {*_NAMES, accuracy, *(column for column, _ in metrics.values())}
    cells: dict[tuple[str, str], list[tuple[float, dict[str, float]]]] = {}
    left_out = {"without_accuracy": 0} | {f"without_{name}": 0 for name in metrics}
    seen: dict[tuple[str, ...], int] = {}
    for line in lines:
        _check_name(path, line, seen)
        share = _accuracy(path, line, accuracy)
        values = {name: _number(path, line, column) for name, (column, _) in metrics.items()}
        missing = [name for name, value in values.items() if value is None]
        if share is None:
            left_out["without_accuracy"] += 1
        elif missing:
            left_out[f"without_{missing[0]}"] += 1
        else:
            known = {name: value for name, value in values.items() if value is not None}
            cells.setdefault((line.values["model"], line.values["task"]), []).append((share, known))
    judged = tuple(_cell(key, rows) for key, rows in cells.items() if len(rows) > 1)
    if not judged:
        raise _nothing_to_judge(path, left_out)
    left_out["alone_in_their_cell"] = sum(len(rows) == 1 for rows in cells.values())
    return Ledger(
        judged,
        {name: direction for name, (_, direction) in metrics.items()},
        left_out,
        tuple(column for column in lines[0].values if column not in taken),
    )


def _read_lines(path: Path) -> list[_Line]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(_lines(path, file))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", code="E_INPUT_FILE", where=str(path)
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"is not CSV in UTF-8: {error}", code="E_LEDGER", where=str(path), hint="convert it"
        ) from None
    if not lines:
        raise InputError(
            "holds no lines below its header, expected one a model, task and variant",
            code="E_INPUT_EMPTY",
            where=str(path),
        )
    return lines


def _lines(path: Path, file: Iterator[str]) -> Iterator[_Line]:
    reader = csv.reader(file)
    header = [name.strip() for name in next(reader, [])]
    for name in header:
        if header.count(name) > 1:
            raise _bad(path, 1, f"names the column `{name}` twice", "rename one of them")
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(header):
            raise _bad(
                path,
                reader.line_num,
                f"has {len(fields)} fields, expected {len(header)} as in the header",
                'quote texts that hold commas: "a, b"',
            )
        stripped = [field.strip() for field in fields]
        yield _Line(reader.line_num, dict(zip(header, stripped, strict=True)))


def _columns(path: Path, header: list[str]) -> tuple[str, dict[str, tuple[str, Direction]]]:
    """Find the accuracy's column, and metric -> (its column, its direction)."""
    for name in _NAMES:
        if name not in header:
            raise _bad(path, 1, f"has no column `{name}`{nearest(name, header)}", "add it")
    accuracy = next((name for name in _ACCURACY if name in header), None)
    if accuracy is None:
        raise _bad(
            path, 1, "has no column `accuracy` (or `acc_mean`)", "add it, as shares of 0 to 1"
        )
    metrics: dict[str, tuple[str, Direction]] = {}
    for column in header:
        found = _metric(column)
        if found is None:
            continue
        name, direction = found
        if name in metrics:
            raise _bad(
                path, 1, f"has `{name}` twice: `{metrics[name][0]}`, `{column}`", "leave one out"
            )
        metrics[name] = (column, direction)
    if not metrics:
        raise _bad(
            path,
            1,
            f"has no column of a metric, expected `perplexity`, `ifd` ... (found {header})",
            "name one of your own as NAME:lowest or NAME:highest",
        )
    return accuracy, metrics


def _metric(column: str) -> tuple[str, Direction] | None:
    if column in METRICS:
        return column, METRICS[column].familiar
    if column in _ALIASES:
        return _ALIASES[column]
    name, _, direction = column.rpartition(":")
    if name and direction == "lowest":
        return name, "lowest"
    if name and direction == "highest":
        return name, "highest"
    return None


def _check_name(path: Path, line: _Line, seen: dict[tuple[str, ...], int]) -> None:
    for name in _NAMES:
        if not line.values[name]:
            raise _bad(path, line.number, f"has no `{name}`", "fill it in or remove the line")
    key = tuple(line.values[name] for name in _NAMES)
    if key in seen:
        raise _bad(
            path,
            line.number,
            f"repeats {' / '.join(key)} of line {seen[key]}",
            "keep one, or average them",
        )
    seen[key] = line.number


def _accuracy(path: Path, line: _Line, column: str) -> float | None:
    value = _number(path, line, column)
    if value is not None and not 0.0 <= value <= 1.0:
        raise _bad(
            path,
            line.number,
            f"`{column}` is {line.values[column]}, expected a share between 0 and 1",
            "divide percentages by 100",
        )
    return value


def _number(path: Path, line: _Line, column: str) -> float | None:
    text = line.values[column]
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise _bad(
            path,
            line.number,
            f"`{column}` is `{text}`, expected a number",
            "leave the field empty where the value is unknown",
        )
    return value


def _cell(key: tuple[str, str], rows: list[tuple[float, dict[str, float]]]) -> Cell:
    names = rows[0][1]
    return Cell(
        *key,
        accuracies=np.array([share for share, _ in rows]),
        metrics={name: np.array([values[name] for _, values in rows]) for name in names},
    )


def _nothing_to_judge(path: Path, left_out: Mapping[str, int]) -> InputError:
    most = max(left_out, key=lambda name: left_out[name])
    return InputError(
        "holds no model and task with two variants whose accuracy and metrics are all known; "
        f"{left_out[most]} lines are {most.replace('_', ' ')}",
        code="E_LEDGER_EMPTY",
        where=str(path),
        hint="fill in what is missing, or remove the column of a metric that is hardly known",
    )


def _bad(path: Path, number: int, found: str, remedy: str) -> InputError:
    return InputError(found, code="E_LEDGER", where=f"{path}:{number}", hint=remedy)
