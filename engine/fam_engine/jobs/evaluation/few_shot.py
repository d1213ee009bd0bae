"""Worked examples before each question.

In: a file of records with responses. Out: the same question after K of them, as earlier turns (with a template) or as
text before it. Every question gets the first K of the file; an example that asks the very question is passed over, it
would give the answer away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fam_engine.data.reading import read_rows
from fam_engine.data.records import Record, detect_form, mapped_row, read_record
from fam_engine.data.turns import Message
from fam_engine.errors import InputError, RecordError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.selection.overlap import asked, fingerprint


@dataclass(frozen=True)
class Examples:
    """Records that may stand before a question.

    Attributes:
        records: All of the file, with the fingerprints of what they ask.
        count: How many stand before each question.
    """

    records: tuple[tuple[bytes, Record], ...]
    count: int

    def before(self, record: Record) -> Record:
        """Give the record with examples before it."""
        own = fingerprint(asked(record))
        chosen = [example for print_, example in self.records if print_ != own][: self.count]
        turns: list[Message] = []
        verbatim = ""
        for example in chosen:
            turns += [*example.context, example.answer_turn()]
            verbatim += f"{example.verbatim}{example.response}\n\n"
        return replace(
            record, context=(*turns, *record.context), verbatim=verbatim + record.verbatim
        )


NO_EXAMPLES = Examples((), 0)


def read_examples(file: DataFile, columns: Mapping[str, str], count: int) -> Examples:
    """Read a file of examples.

    Args:
        file: Records with responses.
        columns: Record field -> column, from `--map`.
        count: How many are to stand before each question.

    Raises:
        InputError: A record that does not read, or too few of them.
    """
    records = [(fingerprint(asked(record)), record) for record in _records(file, columns)]
    asking_alike = Counter(print_ for print_, _ in records).values()
    left = len(records) - max(asking_alike, default=0)
    if left < count:
        raise InputError(
            f"holds {len(records)} records, as few as {left} for a question that is among them, "
            f"expected at least {count} for --few-shot {count}",
            code="E_FEW_SHOT",
            where=file.name,
        )
    return Examples(tuple(records), count)


def _records(file: DataFile, columns: Mapping[str, str]) -> Sequence[Record]:
    records = []
    for row in read_rows(file.path):
        try:
            mapped = mapped_row(row, columns)
            record = read_record(
                mapped, detect_form(mapped), file=file.name, line=row.line, stem=file.stem
            )
            if record.is_more_than_texts:
                raise RecordError(
                    "E_FEW_SHOT",
                    "has tools, calls or reasoning, which no other question would have",
                )
            records.append(record)
        except RecordError as error:
            raise InputError(
                error.reason, code=error.code, where=f"{file.name}:{row.line}"
            ) from None
    return records
