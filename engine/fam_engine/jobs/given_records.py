"""Records that another program gives in memory, as lines of a file: from there on they go the way of every file.

In: dicts of the forms files may have. Out: a line of JSON each, or an error that names the one that is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fam_engine.errors import InputError, UsageError


def record_lines(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Give each record as a line of JSON.

    Raises:
        InputError: They are no list of dicts; or one is no dict, or holds what JSON cannot, and the message names it,
            counted from 1.
    """
    if isinstance(records, Mapping | str | bytes) or not isinstance(records, Iterable):
        raise _no_records(records)
    for number, record in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            if hasattr(records, "columns"):  # a table gives its columns, or their names
                raise _no_records(records)
            raise _refused(number, f"is of type {type(record).__name__}, expected a dict")
        try:
            line = json.dumps(dict(record))
        except (TypeError, ValueError) as error:
            raise _refused(number, f"holds what JSON cannot: {error}") from None
        yield f"{line}\n"


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
