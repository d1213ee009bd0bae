"""The child process that reads Parquet: the file is a stranger's, and its parser a large program in C++.

In (arguments): the file, the seconds a batch may take, and which columns (none: all). Out (standard output): an Arrow
stream of batches. A row that has no value in Python (a text that is no UTF-8, a time beyond the calendar within a list)
comes as a batch of no rows with the reason in its metadata under `fault`, so that it costs itself only. What is wrong
with the file as a whole goes to standard error, in one line, and the exit code is 1. So does a name that comes twice,
of columns or of fields within one: a row as a dict would keep the last and say nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow
import pyarrow.parquet

from fam_engine.data.children import allow_seconds, become_child
from fam_engine.data.parquet_values import rows_of

# A row group's compressed columns are held at once, and what of them is decoded.
MEMORY_BYTES = 4 << 30
ROWS_A_BATCH = 1024


def _fault(batch: Any) -> str | None:  # noqa: ANN401 - pyarrow is untyped
    """Say why a batch has no value in Python, if so."""
    try:
        batch.validate(full=True)
        rows_of(batch)
    except MemoryError:
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        return _summary(error)
    return None


def _send(stream: Any, batch: Any) -> None:  # noqa: ANN401 - pyarrow is untyped
    fault = _fault(batch)
    if fault is None:
        stream.write_batch(batch)
    elif batch.num_rows == 1:
        stream.write_batch(batch.slice(0, 0), custom_metadata={"fault": fault})
    else:
        for row in range(batch.num_rows):
            _send(stream, batch.slice(row, 1))


def _check_names(fields: Iterable[Any], path: tuple[str, ...] = ()) -> None:
    """Raise ValueError if fields side by side have one name."""
    kinds = [(field.name, field.type) for field in fields]
    for name, count in Counter(name for name, _ in kinds).items():
        if count > 1:
            full = ".".join((*path, name))
            raise ValueError(f"it has the column `{full}` {count} times, expected each name once")
    for name, kind in kinds:
        _check_names((kind.field(index) for index in range(kind.num_fields)), (*path, name))


def _summary(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY_BYTES >> 30} GiB (smaller row groups need less)"
    return next(iter(str(error).splitlines()), type(error).__name__)


def main() -> None:
    """Send the batches of the file."""
    path, seconds, *columns = sys.argv[1:]
    become_child(MEMORY_BYTES)
    allow_seconds(int(seconds))
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, chosen = file.schema_arrow, None
            _check_names(schema)
            if columns:
                chosen = [name for name in columns if name in schema.names]
                schema = pyarrow.schema([schema.field(name) for name in chosen])
            with pyarrow.ipc.new_stream(sys.stdout.buffer, schema) as stream:
                for batch in file.iter_batches(batch_size=ROWS_A_BATCH, columns=chosen):
                    _send(stream, batch)
                    allow_seconds(int(seconds))
    except BrokenPipeError:
        pass  # nobody wants the rest
    except Exception as error:
        # Whatever the parser raises is about this file.
        sys.exit(_summary(error))


if __name__ == "__main__":
    main()
