"""Records a job leaves out: what is known of each, and the file that tells its user.

In: rows of the quarantine, as the journal keeps them. Out: `quarantine.jsonl`, whole or absent, and how many there are.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fam_engine.data.json_lines import write_json_lines
from fam_engine.errors import InputError
from fam_engine.jobs.data_files import DataFile

# File, line, offset of the line in bytes if known, stable name of the problem, and the problem.
Quarantined = tuple[str, int, int | None, str, str]
_NAMES = ("file", "line", "offset", "code", "reason")


def read_quarantine(db: sqlite3.Connection) -> Iterator[Quarantined]:
    """Give what a journal's quarantine holds, in order."""
    yield from db.execute(f"SELECT {', '.join(_NAMES)} FROM quarantine ORDER BY number")


def write_quarantine(path: Path, rows: Iterable[Quarantined]) -> dict[str, int]:
    """Write what was left out, and why.

    Returns:
        Number of rows by code.
    """
    counts: Counter[str] = Counter()

    def told() -> Iterator[dict[str, Any]]:
        for row in rows:
            one = dict(zip(_NAMES, row, strict=True))
            counts[row[3]] += 1
            yield one

    write_json_lines(path, told())
    return dict(counts)


def quarantined_by_code(db: sqlite3.Connection) -> dict[str, int]:
    """Count what a journal's quarantine holds."""
    return dict(db.execute("SELECT code, COUNT(*) FROM quarantine GROUP BY code"))


def left_out(counts: Mapping[str, int]) -> dict[str, Any]:
    """Give how many records were left out, as summaries say it."""
    return {"quarantined": sum(counts.values()), "quarantined_by_code": dict(counts), "skipped": 0}


def nothing_usable(files: Sequence[DataFile], first: Quarantined | None) -> InputError:
    """Give the error of a job whose data files hold not one record it can use.

    Args:
        files: All of them.
        first: The first record that was left out; None: there is not one record.
    """
    if first is None:
        names = ", ".join(file.name for file in files)
        return InputError(
            "holds no records, expected at least one", code="E_INPUT_EMPTY", where=names
        )
    file, line, _, code, reason = first
    return InputError(
        f"not one record is usable; the first fault is {code}: {reason}",
        code="E_INPUT_UNUSABLE",
        where=f"{file}:{line}",
    )
