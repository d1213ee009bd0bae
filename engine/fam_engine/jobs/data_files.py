"""The data files of a job, as their user named them.

In: names. Out: `DataFile`s that are there and of a kind we read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fam_engine.config import nearest
from fam_engine.data.reading import check_file, data_stem, read_rows
from fam_engine.embedded import DEMO_RECORDS
from fam_engine.errors import InputError

# Rows of each file that are looked at for a column.
_FIRST_ROWS = 1024


@dataclass(frozen=True)
class DataFile:
    """A data file.

    Attributes:
        name: The name its user gave it.
        path: Where it is.
        label: What its records have as `source` and `task` if nothing else; empty: its name without folder and endings.
    """

    name: str
    path: Path
    label: str = ""

    @property
    def stem(self) -> str:
        """Give its label."""
        return self.label or data_stem(self.path)


def find_files(names: Sequence[str]) -> tuple[DataFile, ...]:
    """Resolve the names of data files; those of one name in several folders are told apart by these.

    Raises:
        InputError: A file is missing or of an unknown kind.
    """
    paths = [DEMO_RECORDS if name == "embedded" else check_file(name) for name in names]
    labels = names_apart(
        [(*Path(os.path.abspath(path)).parent.parts, data_stem(path)) for path in paths]
    )
    return tuple(map(DataFile, names, paths, labels))


def find_distinct_files(names: Sequence[str]) -> tuple[DataFile, ...]:
    """Resolve the names of data files for a job in which a record may count but once.

    Raises:
        InputError: A file is missing, of an unknown kind, or named twice.
    """
    files = find_files(names)
    check_distinct(files)
    return files


def check_distinct(files: Sequence[DataFile]) -> None:
    """Refuse a file that is named twice, however its path is spelled.

    Raises:
        InputError: One is.
    """
    places: dict[str, str] = {}
    for file in files:
        place = os.path.realpath(file.path)
        if place in places:
            raise InputError(
                f"is the same file as {places[place]}", code="E_INPUT_TWICE", where=file.name
            )
        places[place] = file.name


def names_apart(paths: Sequence[tuple[str, ...]], *, taken: Sequence[str] = ()) -> list[str]:
    """Name paths by as few of their last parts as tell different ones apart.

    Args:
        paths: Their parts.
        taken: Names that none may have.
    """
    wanted = len(set(paths)) + len(taken)
    for depth in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(part for part in path[-depth:] if part != "/") for path in paths]
        if len({*names, *taken}) == wanted:
            return names
    return ["/".join(path) for path in paths]


def note_unseen_columns(
    files: Sequence[DataFile], columns: Mapping[str, str], note: Callable[[str], None]
) -> None:
    """Tell the user which columns named by `--map` none of the first rows has: most likely they are mistyped.

    Args:
        files: The data.
        columns: Record field -> column, from `--map`.
        note: Is given a line about each.

    Raises:
        InputError: A file as a whole cannot be read.
    """
    unseen, seen = set(columns.values()), set[str]()
    for file in files:
        for row in islice(read_rows(file.path), _FIRST_ROWS):
            if not unseen:
                return
            seen.update(row.columns or ())
            unseen -= seen
    for name, column in columns.items():
        if column in unseen:
            note(
                f"--map {name}={column}: none of the first {_FIRST_ROWS:,} rows of a file has a "
                f"column `{column}`{nearest(column, sorted(seen))}"
            )
