"""Which records ask a question that a test file asks too.

In: the data files and the test files, these in any form records may have, with or without a response. Out: the places
of such records. The data is read once more for it, so that no question has to be held: only the fingerprints of the
test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from fam_engine.data.reading import read_rows
from fam_engine.data.records import Record, detect_form, map_columns, read_record
from fam_engine.errors import InputError, RecordError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.generation.rows import as_question, find_kind
from fam_engine.jobs.selection.records import iterate_records
from fam_engine.measure.overlap import Overlap, find_overlap, words_and_signs


def overlap_with_test(
    files: Sequence[DataFile],
    test: Sequence[DataFile],
    *,
    columns: Mapping[str, str],
    limit: int | None,
) -> tuple[Overlap, list[dict[str, Any]]]:
    """Find the records whose question is in the test files.

    Args:
        files: Data files.
        test: Test files; none: nothing overlaps.
        columns: Record field -> column, from `--map`.
        limit: Read no more rows of the data than this.

    Returns:
        Places among the readable records, in input order; and for every test file its name, questions `read`, and
        rows `skipped`.

    Raises:
        InputError: A test file holds no questions.
    """
    if not test:
        return Overlap(0, (), ()), []
    tested = [Questions(file, columns) for file in test]
    records = (record for _, _, record in iterate_records(files, columns, limit))
    overlap = find_overlap(
        chain.from_iterable(tested), (asked(r) for r in records if isinstance(r, Record))
    )
    return overlap, [questions.counts for questions in tested]


def asked(record: Record) -> str:
    """Give what a record asks: the user's turns before the answer, a line each."""
    return "\n".join(turn.content for turn in record.context if turn.role == "user")


def asked_text(row: Mapping[str, Any]) -> str:
    """Give what the user says in a row that needs no response.

    Raises:
        RecordError: It asks nothing, or nothing that can be read.
    """
    return asked_in(as_question(row, find_kind(row)))


def asked_in(question: Mapping[str, Any]) -> str:
    """Give what the user says in what `as_question` made of a row.

    Raises:
        RecordError: It cannot be read.
    """
    return asked(read_record(question, detect_form(question), file="", line=0, stem=""))


def fingerprint(question: str) -> bytes:
    """Name a question by its words and signs: two of equal name differ in case or punctuation at most."""
    return hashlib.blake2b(" ".join(words_and_signs(question)).encode(), digest_size=8).digest()


class Questions:
    """The questions of a file whose rows need no response; read anew each time.

    Args:
        file: The file.
        columns: Record field -> column, from `--map`.

    Attributes:
        num_read: Questions read.
        num_skipped: Rows that hold none, or none that can be read.
    """

    def __init__(self, file: DataFile, columns: Mapping[str, str]) -> None:
        self._file = file
        self._columns = columns
        self.num_read = self.num_skipped = 0

    def __iter__(self) -> Iterator[str]:
        """Give the questions.

        Raises:
            InputError: There is none.
        """
        self.num_read = self.num_skipped = 0
        for row in read_rows(self._file.path):
            try:
                question = asked_text(map_columns(row.columns or {}, self._columns))
            except RecordError:
                self.num_skipped += 1
                continue
            self.num_read += 1
            yield question
        if not self.num_read:
            raise InputError(
                "holds no questions, expected records or at least a `prompt` or `question` each",
                code="E_INPUT_UNUSABLE",
                where=self._file.name,
            )

    @property
    def counts(self) -> dict[str, Any]:
        """What a summary says of them, once they are read."""
        return {"file": self._file.name, "read": self.num_read, "skipped": self.num_skipped}
