"""How far each kind of job is, counted in the tables it keeps.

In: a journal opened for reading, and the folder. Out: `Progress`. A job's kind follows from its tables, or from its key
where two kinds share them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fam_engine.errors import InputError
from fam_engine.jobs.journal import STATE_FOLDER
from fam_engine.jobs.peek import kept, peek
from fam_engine.jobs.scoring.sharing.claims import undone_parts
from fam_engine.jobs.scoring.sharing.parts import FOLDER, read_plan
from fam_engine.jobs.training.log import NAME as LOG
from fam_engine.jobs.training.log import read_log

# The table only this command keeps; `generate` has `questions` in common with eval, which comes first.
_TABLES: Final = {
    "samples": "eval",
    "candidates": "rewrite",
    "questions": "generate",
    "results": "score",
}


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        phase: What it does or did last.
        done: Units done.
        total: Of so many; None: not known yet.
        unit: What is counted.
        seconds: Time spent computing, of all runs; None: not kept.
    """

    phase: str
    done: int
    total: int | None
    unit: str
    seconds: float | None = None


def command_of(db: sqlite3.Connection, out: Path) -> str:
    """Say which command a journal belongs to.

    Raises:
        InputError: None of those that `status` reads.
    """
    key = kept(db, "key") or {}
    if key.get("command") == "experiment":
        return "experiment"
    if "train_on" in key:
        return "train"
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, command in _TABLES.items():
        if table in tables:
            return command
    raise InputError(
        "holds a job of another command, expected score, generate, rewrite, train, eval or experiment",
        code="E_STATUS_KIND",
        where=str(out),
        hint="such a job takes seconds: run its command again",
    )


def progress_of(command: str, db: sqlite3.Connection, out: Path) -> Progress:
    """Count how far a job is."""
    if command != "experiment" and kept(db, "ingested") is None:
        return Progress("reading", _count(db, _READ[command]), None, "records")
    return _COUNTERS[command](db, out)


def _score(db: sqlite3.Connection, out: Path) -> Progress:
    parts = out / STATE_FOLDER / FOLDER
    if plan := read_plan(parts):
        names = plan.names()
        return Progress(
            "scoring", len(names) - len(undone_parts(parts, names)), len(names), "parts"
        )
    done = _count(db, "records JOIN results ON results.entry = records.entry")
    total = kept(db, "ingested")["records"]
    return Progress("scoring", done, total, "records", _seconds(db))


def _generate(db: sqlite3.Connection, _out: Path) -> Progress:
    done = _count(db, "(SELECT DISTINCT position FROM texts)")
    return Progress("generating", done, kept(db, "ingested"), "records", _seconds(db))


def _rewrite(db: sqlite3.Connection, out: Path) -> Progress:
    """Count the attempt that is being made; each is for the records the ones before left open."""
    number = int(kept(db, "attempts_done") or 0)
    attempt = out / STATE_FOLDER / f"attempt-{number}"
    phase, seconds = f"attempt {number}", _seconds(db)
    if not _has_journal(attempt):
        done = _count(db, "(SELECT DISTINCT position FROM candidates)")
        total = _count(db, "records WHERE reference IS NOT NULL")
        return Progress(f"{number} attempts made", done, total, "records tried", seconds)
    with peek(attempt) as own:
        done = _count(own, "(SELECT DISTINCT position FROM texts)")
        # Its questions are still being written where it is not `asked` yet.
        asked = _count(own, "questions") if kept(own, "asked") else None
    return Progress(phase, done, asked, "records", seconds)


def _train(db: sqlite3.Connection, out: Path) -> Progress:
    lines = list(read_log(out / LOG))
    done = max((line["step"] for line in lines), default=0)
    seconds = sum(line.get("seconds", 0.0) for line in lines)
    return Progress("training", done, kept(db, "num_steps"), "steps", seconds)


def _eval(db: sqlite3.Connection, out: Path) -> Progress:
    """Count the model that is being asked; of the others there are only questions answered."""
    num_done = _count(db, "meta WHERE name LIKE 'done/%'")
    read = kept(db, "ingested")
    begun = begun_models(out)
    if not begun:
        num_asked = read["questions"]
        done = num_asked if num_done else 0
        return Progress(f"{num_done} models asked", done, num_asked, "questions", _spent(db))
    num_written = _count(db, "questions WHERE first_entry IS NULL")
    done = sum(
        _count_in(begun[0] / part, table)
        for part, table in (
            ("texts", "(SELECT DISTINCT position FROM texts)"),
            ("choices", "results"),
        )
    )
    total = num_written + read["entries"]
    return Progress(f"asking model {num_done + 1}", done, total, "answers and options", _spent(db))


def _experiment(_db: sqlite3.Connection, out: Path) -> Progress:
    folders = step_folders(out)
    notes = [
        json.loads((folder / "step.json").read_text(encoding="utf-8"))
        for folder in folders
        if (folder / "step.json").is_file()
    ]
    seconds = sum(note["seconds"] for note in notes)
    # How many there are to be only its YAML says.
    return Progress("computing steps", len(notes), None, "steps", seconds)


_COUNTERS: Final[dict[str, Callable[[sqlite3.Connection, Path], Progress]]] = {
    "score": _score,
    "generate": _generate,
    "rewrite": _rewrite,
    "train": _train,
    "eval": _eval,
    "experiment": _experiment,
}
_READ: Final = {
    "score": "records",
    "train": "records",
    "rewrite": "records",
    "generate": "questions",
    "eval": "questions",
}


def begun_models(out: Path) -> list[Path]:
    """Give the folders of models that an evaluation has begun with and not finished."""
    return sorted((out / STATE_FOLDER / "models").glob("*"))


def step_folders(out: Path) -> list[Path]:
    """Give the folders of an experiment's steps, begun and finished."""
    return sorted(path for path in (out / "steps").glob("*/*") if path.is_dir())


def in_flight(db: sqlite3.Connection) -> int:
    """Count the entries of a batch that was begun and neither landed nor was called off."""
    return _count(db, "in_flight")


def _seconds(db: sqlite3.Connection) -> float | None:
    spent = kept(db, "spent")
    return None if spent is None else float(spent[1])


def _spent(db: sqlite3.Connection) -> float | None:
    """Add up what an evaluation's finished models took."""
    rows = db.execute("SELECT value FROM meta WHERE name LIKE 'done/%'").fetchall()
    return sum(json.loads(row[0])["seconds"] for row in rows) if rows else None


def _count(db: sqlite3.Connection, rows: str) -> int:
    return int(db.execute(f"SELECT COUNT(*) FROM {rows}").fetchone()[0])


def _has_journal(folder: Path) -> bool:
    return (folder / STATE_FOLDER / "journal.sqlite").is_file()


def _count_in(folder: Path, rows: str) -> int:
    if not _has_journal(folder):
        return 0
    with peek(folder) as db:
        return _count(db, rows)
