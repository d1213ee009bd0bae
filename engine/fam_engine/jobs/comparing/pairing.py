"""Which row of one run is which of the other: the same record, or none.

In: two runs. Out: `Paired`. A record is known by its id; where an id comes twice in either run, by its source as well,
which holds though files are put together or sorted anew; where that comes twice too, or the other run has none of that
source (labels of files of one name follow from which a run was given), by file and line. A file is the same, wherever
it lies, where both runs read one of its SHA-256. Rows that could still be one of several are left alone: taken in
order, another order of files or a record left out would pair different answers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fam_engine.jobs.comparing.runs import Run
from fam_engine.jobs.selection.scores import place_of

_Key = tuple[object, ...]
# File as a run was given it -> what it is known by.
_Places = Mapping[str, str]


@dataclass(frozen=True)
class Rest:
    """What a run has besides.

    Attributes:
        only: Rows whose id the other run has not.
        unpaired: Rows whose id it has, but no row that is known to be the same record.
        num_repeated: Rows, paired or not, whose id another row of the run has too.
    """

    only: list[int]
    unpaired: list[int]
    num_repeated: int


@dataclass(frozen=True)
class Paired:
    """Two runs brought together.

    Attributes:
        rows: Row of the first and row of the second of each record in both, in the first's order.
        rest: What each run has besides.
    """

    rows: list[tuple[int, int]]
    rest: tuple[Rest, Rest]


def pair_rows(first: Run, second: Run) -> Paired:
    """Find the row of the second run for each of the first."""
    runs = first, second
    places = _places(first, second), _places(second, first)
    names = _names(first, second, places[0]), _names(second, first, places[1])
    counts = Counter(names[0]), Counter(names[1])
    repeated = {name for count in counts for name, number in count.items() if number > 1}
    keys = _keys(runs, names, repeated, _files(runs, places)) if repeated else names
    alone = [_alone(of_run) for of_run in keys]
    rows = [(row, alone[1][key]) for key, row in alone[0].items() if key in alone[1]]
    return Paired(
        rows,
        (
            _rest({row for row, _ in rows}, names[0], *counts),
            _rest({row for _, row in rows}, names[1], *counts[::-1]),
        ),
    )


def _places(run: Run, other: Run) -> _Places:
    """Give where each file of a run is: its path, or its SHA-256 where just one file of each run has it."""
    here, there = (Counter(one.hashes.get(file) for file in set(one.files)) for one in (run, other))
    return {
        file: sha256
        if (sha256 := run.hashes.get(file)) and here[sha256] == there[sha256] == 1
        else place_of(file)
        for file in set(run.files)
    }


def _names(run: Run, other: Run, places: _Places) -> list[_Key]:
    """Give what rows are known by: their id, and what it belongs to.

    An id that nobody wrote is `file:line` and changes with the spelling of the path. Where it is written in the other
    run it stays, as `select` writes it into the records it chose.
    """
    written = {one for one, file, line in _rows(other) if one != f"{file}:{line}"}
    names = (
        f"{places[file]}:{line}" if one == f"{file}:{line}" and one not in written else one
        for one, file, line in _rows(run)
    )
    return [(*scope, name) for scope, name in zip(run.scopes, names, strict=True)]


def _rows(run: Run) -> Iterator[tuple[str, str, str]]:
    return zip(run.ids, run.files, run.lines, strict=True)


def _keys(
    runs: tuple[Run, Run],
    names: tuple[list[_Key], list[_Key]],
    repeated: set[_Key],
    files: tuple[_Places, _Places],
) -> tuple[list[_Key], list[_Key]]:
    """Lengthen the names that are repeated by what tells their rows apart."""
    by_source = [
        Counter(pair for pair in zip(of_run, run.sources, strict=True) if pair[0] in repeated)
        for run, of_run in zip(runs, names, strict=True)
    ]

    def key(name: _Key, source: str, file: str, line: str) -> _Key:
        if name not in repeated:
            return name
        numbers = [count[name, source] for count in by_source]
        if numbers == [1, 1]:
            return name, source
        return name, source if all(numbers) else None, file, line

    first, second = (
        list(map(key, of_run, run.sources, map(known.__getitem__, run.files), run.lines))
        for run, of_run, known in zip(runs, names, files, strict=True)
    )
    return first, second


def _files(runs: tuple[Run, Run], places: tuple[_Places, _Places]) -> tuple[_Places, _Places]:
    """Give what each file is known by: its name where each run has one file of it, as files move; else its place."""
    paths = [{place_of(file) for file in set(run.files)} for run in runs]
    counts = [Counter(map(os.path.basename, of_run)) for of_run in paths]
    moved = {name for name, number in counts[0].items() if number == counts[1][name] == 1}
    first, second = (
        {
            file: name if (name := os.path.basename(file)) in moved else place
            for file, place in of_run.items()
        }
        for of_run in places
    )
    return first, second


def _alone(keys: Sequence[_Key]) -> dict[_Key, int]:
    """Give the row of each key that only one has, in their order."""
    counts = Counter(keys)
    return {key: row for row, key in enumerate(keys) if counts[key] == 1}


def _rest(
    paired: set[int], names: Sequence[_Key], here: Counter[_Key], there: Counter[_Key]
) -> Rest:
    left = [row for row in range(len(names)) if row not in paired]
    return Rest(
        only=[row for row in left if names[row] not in there],
        unpaired=[row for row in left if names[row] in there],
        num_repeated=sum(number for number in here.values() if number > 1),
    )
