"""Files of questions, as every job reads them that asks a model.

In: data files, and how a row becomes what a job asks. Out: an `Item` a row, and pass 1 over all of them. What a file
asks with is found once, from its first readable row; one bad row never stops the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Generic, TypeVar, get_args

from fam_engine.data.reading import Row, read_rows
from fam_engine.data.records import mapped_row
from fam_engine.data.tokenizer import Encoded
from fam_engine.errors import RecordError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.generation.rows import find_kind
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.quarantine import Quarantined, nothing_usable, read_quarantine
from fam_engine.measure.answers import TaskKind

T = TypeVar("T")
# (file, place, row with its columns renamed, the column the file asks with) -> what the job asks.
ReadRow = Callable[[DataFile, Row, Mapping[str, Any], str], T]
# Rows encoded and kept at a time.
_CHUNK: Final = 512
_KINDS: Final[tuple[TaskKind, ...]] = get_args(TaskKind)


@dataclass(frozen=True)
class Item(Generic[T]):
    """A row and what it was read as.

    Attributes:
        file: Its file.
        place: The row.
        read: What is asked, or why nothing can be.
    """

    file: DataFile
    place: Row
    read: T | RecordError

    def quarantined(self, problem: RecordError) -> Quarantined:
        """Give the row of the quarantine."""
        place = self.place
        return self.file.name, place.line, place.offset, problem.code, problem.reason


def read_items(
    files: Sequence[DataFile],
    columns: Mapping[str, str],
    read: ReadRow[T],
    *,
    limit_a_file: int | None = None,
) -> Iterator[Item[T]]:
    """Read the rows of all files, in order.

    Args:
        files: Data files.
        columns: Record field -> column, from `--map`.
        read: Makes of a row what is asked; raises `RecordError` where it cannot.
        limit_a_file: Read no more rows of each file than this.

    Raises:
        InputError: A file as a whole cannot be read.
    """
    for file in files:
        kind: str | None = None
        for place in islice(read_rows(file.path), limit_a_file):
            try:
                row = mapped_row(place, columns)
                kind = kind or find_kind(row)
                yield Item(file, place, read(file, place, row, kind))
            except RecordError as error:
                yield Item(file, place, error)


def ingest_items(
    journal: Journal,
    table: str,
    files: Sequence[DataFile],
    items: Iterable[Item[T]],
    take: Callable[[list[Item[T]]], int],
    advance: Callable[[int], None],
) -> int:
    """Run pass 1 from its beginning.

    Args:
        journal: Where the questions go.
        table: Name of the table that holds them; its rows of an earlier attempt are removed.
        files: Data files, for what is said of them.
        items: What was read of them.
        take: Keeps a chunk and gives how many questions it was.
        advance: Called with the number of rows read since the last call.

    Returns:
        The number of questions.

    Raises:
        InputError: There is not one.
    """
    with journal.commit() as db:
        db.execute(f"DELETE FROM {table}")
        db.execute("DELETE FROM quarantine")
    rows, count = iter(items), 0
    while chunk := list(islice(rows, _CHUNK)):
        count += take(chunk)
        advance(len(chunk))
    if not count:
        raise nothing_usable(files, next(read_quarantine(journal.db), None))
    return count


def check_prompt(encoded: Encoded | RecordError) -> Encoded:
    """Give back what a model can read.

    Raises:
        RecordError: It cannot read this.
    """
    if isinstance(encoded, RecordError):
        raise encoded
    if "first_token_unscored" in encoded.flags:
        raise RecordError("E_EMPTY_PROMPT", "the prompt is empty and the model has no BOS")
    return encoded


def texts_of(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Give a row's list of texts (`choices`, `tests`), empty where it has none.

    Raises:
        RecordError: It is something else.
    """
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RecordError("E_RECORD_TYPE", f"field `{name}` is not a list of texts")
    return tuple(value)


def choices_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Give a row's options.

    Raises:
        RecordError: They are no list of texts; or the gold answer is a JSON number that is the text of none, or the
            place of another. Data that holds numbers counts from 0 (MMLU) or from 1, and the wrong guess grades every
            question by its neighbour.
    """
    choices, gold = texts_of(row, "choices"), row.get("answer")
    if (
        choices
        and isinstance(gold, int | float)
        and not isinstance(gold, bool)
        and not _is_a_text(gold, choices)
    ):
        found = f"the gold answer {gold} may count the choices from 0 or from 1"
        raise RecordError("E_NO_GOLD", f"{found}, expected the letter or the text of one")
    return choices


def _is_a_text(gold: float, choices: Sequence[str]) -> bool:
    """Whether a number is the text of an option, and counts no other."""
    places = (int(place) for place in (gold, gold - 1) if place in range(len(choices)))
    return str(gold) in choices and {choices[place] for place in places} <= {str(gold)}


def kind_of(row: Mapping[str, Any]) -> TaskKind | None:
    """Give how a row says its answers are judged, None where it does not say.

    Raises:
        RecordError: It names no kind there is.
    """
    named = row.get("kind")
    if named is None:
        return None
    if named not in _KINDS:
        raise RecordError("E_KIND", f"field `kind` is {named!r}, expected {', '.join(_KINDS)}")
    return _KINDS[_KINDS.index(named)]
