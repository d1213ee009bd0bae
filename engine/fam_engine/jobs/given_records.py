"""Records that another program gives in memory, as lines of a file: from there on they go the way of every file.

In: dicts of the forms files may have. Out: a line of JSON each, or an error that names the one that is none; for a job
with an output folder, files beside its progress. These have folders named by their contents: the same records are the
same file, and others never touch it, so nothing has to be known of the job before they are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fam_engine.data.json_lines import dump_row
from fam_engine.errors import FamEngineError, InputError, LockedError, RecordError, UsageError
from fam_engine.jobs.journal import STATE_FOLDER, Journal, storage_errors

# What comes of a record that is none of JSON: a value of another type, a list in itself or nested without end.
_NO_JSON = (RecordError, TypeError, ValueError, RecursionError)
# What a job's messages advise and only its command can do: flags, in brackets at their end.
_ADVICE = re.compile(r" \([^()]*--[a-z][^()]*\)$")


def record_lines(
    records: Iterable[Mapping[str, Any]], *, refused: dict[int, str] | None = None
) -> Iterator[str]:
    """Give each record as a line of JSON: what it has and JSON has not becomes its nearest, see `json_lines`.

    Args:
        records: The records.
        refused: Gets code and reason of each that is no record, by its number from 1, and `null`
            is its line; None: the first one raises.

    Raises:
        InputError: They are no list of dicts; or one is no dict, or holds what JSON cannot, and the message names it,
            counted from 1, and the field.
    """
    if isinstance(records, Mapping | str | bytes) or not isinstance(records, Iterable):
        raise _no_records(records)
    for number, record in enumerate(records, start=1):
        if hasattr(records, "columns") and not isinstance(record, Mapping):
            raise _no_records(records)  # a table gives its columns, or their names
        try:
            line = _line(record, number)
        except InputError as error:
            if refused is None:
                raise
            refused[number] = f"{error.code}: {error.message}"
            line = "null"
        yield f"{line}\n"


def left_out(journal: Journal) -> list[tuple[int, str, str]]:
    """Give line, code and reason of the records that a job has left out, in order."""
    rows = journal.db.execute("SELECT line, code, reason FROM quarantine ORDER BY line")
    return [(line, code, _ADVICE.sub("", reason)) for line, code, reason in rows]


def raise_first_fault(journal: Journal, *, but: Collection[str] = ()) -> None:
    """Tell whoever gave the records of the first that a job has left out.

    Args:
        journal: Of the job.
        but: Codes that are no fault of a record.

    Raises:
        InputError: There is one; the message names it, counted from 1.
    """
    for line, code, reason in left_out(journal):
        if code not in but:
            raise InputError(reason, code=code, where=f"record {line}")


def _line(record: object, number: int) -> str:
    if not isinstance(record, Mapping):
        raise _refused(number, f"is of type {type(record).__name__}, expected a dict")
    try:
        return dump_row(dict(record), ensure_ascii=True)
    except _NO_JSON as error:
        field = _refused_field(record)
        raise _refused(number, f"{field}holds what JSON cannot: {error}") from None


def _refused_field(record: Mapping[str, Any]) -> str:
    """Name the first field that JSON cannot hold, as an error's message begins."""
    for name, value in record.items():
        try:
            dump_row({name: value})
        except _NO_JSON:
            return f"field `{name}` "
    return ""


def check_settings(settings: Mapping[str, Any], elsewhere: Iterable[str], place: str) -> None:
    """Refuse settings that are given in another place, which would win without a word.

    Args:
        settings: What was given, by name.
        elsewhere: Names that do not belong there.
        place: Where they belong, as the hint says it.

    Raises:
        UsageError: There is one.
    """
    for name in elsewhere:
        if name in settings:
            raise UsageError(
                f"setting `{name}` would do nothing here", code="E_CONFIG_NAME", hint=place
            )


@contextlib.contextmanager
def kept_records(
    out: Path, given: Mapping[str, Iterable[Mapping[str, Any]]]
) -> Iterator[dict[str, str]]:
    """Keep records in the folder of a job for as long as it lasts, and give the names of their files.

    If the job is refused or fails, the files it had not found there go: the same call writes them again.

    Args:
        out: Output folder; made if absent.
        given: Name of a file without its ending -> its records.

    Raises:
        InputError: As of `record_lines`; then nothing is written.
        StorageError: The disk would not take them.
    """
    texts = {name: "".join(record_lines(records)) for name, records in given.items()}
    paths = {name: _place(out, name, text) for name, text in texts.items()}
    added = [path for path in paths.values() if not path.exists()]
    try:
        with storage_errors(out):
            for name, path in paths.items():
                _write(path, texts[name])
        yield {name: str(path) for name, path in paths.items()}
    except LockedError:  # whoever holds the folder may be reading the very same records
        raise
    except FamEngineError:
        for path in added:
            _remove(path)
        raise


def _place(out: Path, name: str, text: str) -> Path:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return out / STATE_FOLDER / "given" / digest[:16] / f"{name}.jsonl"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The processes of one group all write it at once, so each does under a name of its own.
    with tempfile.TemporaryDirectory(dir=path.parent) as own:
        temporary = Path(own) / path.name
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)


def _remove(path: Path) -> None:
    """Remove a file, then its folders up to the job's own, as far as they are empty."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for folder in list(path.parents)[:3]:
            folder.rmdir()


def _no_records(records: object) -> InputError:
    return InputError(
        f"a value of type {type(records).__name__} was given, expected a list of dicts",
        code="E_RECORDS",
        hint='of a table give its rows: to_dict("records") of pandas, to_pylist() of pyarrow, to_dicts() of polars',
    )


def _refused(number: int, message: str) -> InputError:
    return InputError(
        message,
        code="E_RECORDS",
        where=f"record {number}",
        hint='a record is a dict such as {"prompt": "2 + 3?", "response": "5"}',
    )
