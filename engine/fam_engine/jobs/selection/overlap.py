"""Which records ask a question that a test file asks too.

In: the data files and the test files, these in any form records may have, with or without a response. Out: the places
of such records. The data is read once more for it, so that no question has to be held: only the fingerprints of the
test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

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
) -> Overlap:
    """Find the records whose question is in the test files.

    Args:
        files: Data files.
        test: Test files; none: nothing overlaps.
        columns: Record field -> column, from `--map`.
        limit: Read no more rows of the data than this.

    Returns:
        Places among the readable records, in input order.

    Raises:
        InputError: A test file holds no questions.
    """
    if not test:
        return Overlap(0, (), ())
    tested = [question for file in test for question in questions_of(file, columns)]
    records = (record for _, _, record in iterate_records(files, columns, limit))
    return find_overlap(tested, (asked(r) for r in records if isinstance(r, Record)))


def asked(record: Record) -> str:
    """Give what a record asks: the user's turns before the answer, a line each."""
    return "\n".join(turn.content for turn in record.context if turn.role == "user")


def fingerprint(question: str) -> bytes:
    """Name a question by its words and signs: two of equal name differ in case or punctuation at most."""
    return hashlib.blake2b(" ".join(words_and_signs(question)).encode(), digest_size=8).digest()


def questions_of(file: DataFile, columns: Mapping[str, str]) -> Iterator[str]:
    """Give the questions of a file whose rows need no response.

    Raises:
        InputError: There is none.
    """
    count = 0
    for row in read_rows(file.path):
        mapped = map_columns(row.columns or {}, columns)
        try:
            bare = as_question(mapped, find_kind(mapped))
            record = read_record(
                bare, detect_form(bare), file=file.name, line=row.line, stem=file.stem
            )
        except RecordError:
            continue
        count += 1
        yield asked(record)
    if not count:
        raise InputError(
            "holds no questions, expected records or at least a `prompt` or `question` each",
            code="E_INPUT_UNUSABLE",
            where=file.name,
        )
