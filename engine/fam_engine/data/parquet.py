"""Parquet, read in a child process with limits on time and memory.

In: a path. Out: its rows, or its columns as a table. A damaged or hostile file can make its parser abort, hang or
allocate without end; all that the child then costs is an `InputError`. The batches come as an Arrow stream, which the
child has checked in full, so no type is lost on the way. The child starts in the time `import pyarrow` takes, a few
tenths of a second; reading is no slower, as it is one batch ahead of the parent.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fam_engine.data.children import how_it_ended, start_child
from fam_engine.data.parquet_values import rows_of
from fam_engine.errors import InputError

# Of computing, for a batch of rows: far more than any needs.
_SECONDS_A_BATCH = 60


class ParquetError(Exception):
    """A file that does not read as Parquet; the message says why."""


def read_parquet(path: Path) -> Iterator[dict[str, Any] | str]:
    """Give each row's columns, or what is wrong with it.

    Raises:
        InputError: The file as a whole does not read.
    """
    count = 0
    try:
        with _stream(path) as stream:
            for batch, fault in _batches(stream):
                rows = rows_of(batch) if fault is None else [fault]
                count += len(rows)
                yield from rows
    except ParquetError as error:
        raise InputError(
            f"does not read as Parquet{f' after row {count}' if count else ''}: {error}",
            code="E_INPUT_PARQUET",
            where=f"{path}:{count + 1}" if count else str(path),
            hint="write it anew, or fetch it again",
        ) from None


def read_parquet_table(path: Path, columns: Sequence[str]) -> Any:  # noqa: ANN401 - pyarrow is untyped
    """Read those of the columns that are there, as a `pyarrow.Table`.

    Raises:
        ParquetError: The file does not read.
    """
    import pyarrow

    with _stream(path, columns) as stream:
        batches = []
        for batch, fault in _batches(stream):
            if fault is not None:
                raise ParquetError(fault)
            batches.append(batch)
        return pyarrow.Table.from_batches(batches, schema=stream.schema)


def _batches(stream: Any) -> Iterator[tuple[Any, str | None]]:  # noqa: ANN401 - pyarrow is untyped
    """Give batches as the child sends them: with rows, or with a fault of one row."""
    for batch, metadata in stream.iter_batches_with_custom_metadata():
        yield batch, None if metadata is None else metadata["fault"].decode()


@contextlib.contextmanager
def _stream(path: Path, columns: Sequence[str] = ()) -> Iterator[Any]:
    """Give a stream of batches; how the child ended is looked at after the last."""
    import pyarrow

    module = "fam_engine.data.parquet_worker"
    with start_child(
        module, path.absolute(), _SECONDS_A_BATCH, *columns, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            with pyarrow.ipc.open_stream(child.stdout) as stream:
                yield stream
        except (pyarrow.ArrowException, OSError):  # OSError: within a batch
            # It breaks off where the child ended; one that wants to go on is not to be waited for.
            child.stdout.close()
            if child.wait() == 0:
                raise
        except BaseException:
            child.kill()
            raise
        said, code = child.stderr.read().decode(errors="replace"), child.wait()
    if code:
        raise ParquetError(said.strip() if code == 1 else how_it_ended(code))
