"""Parquet files that are damaged, hostile or odd, and a child that dies of them."""

from __future__ import annotations

import datetime
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fam_engine.data import parquet
from fam_engine.data.parquet import ParquetError, read_parquet, read_parquet_table
from fam_engine.data.reading import read_rows
from fam_engine.errors import InputError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.parquet"


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Keep the children started."""
    started: list[subprocess.Popen[bytes]] = []
    start = parquet.start_child

    def starting(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
        started.append(start(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(parquet, "start_child", starting)
    return started


def test_values_of_every_type_come_through(file: Path) -> None:
    columns = {
        "text": pa.array(["a", "b", None]).dictionary_encode(),
        "time": pa.array([1, None, 10**15], pa.timestamp("us")),
        "turns": pa.array([[{"role": "user", "content": "a"}], [], None]),
        "bytes": pa.array([b"\xff", b"", None]),
    }
    table = pa.table(columns).append_column("a.b", [[1, 2, 3]])
    pq.write_table(table.replace_schema_metadata({"pandas": "{}"}), file)
    first, second, third = read_parquet(file)
    assert first == {
        "text": "a",
        "time": datetime.datetime(1970, 1, 1, 0, 0, 0, 1),
        "turns": [{"role": "user", "content": "a"}],
        "bytes": b"\xff",
        "a.b": 1,
    }
    assert second == {"text": "b", "time": None, "turns": [], "bytes": b"", "a.b": 2}
    assert third["time"] == datetime.datetime(2001, 9, 9, 1, 46, 40)  # type: ignore[index]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (
            # As pandas writes times by default; pyarrow gives them only where pandas is installed.
            pa.array([10**18, None, 10**18 + 1], pa.timestamp("ns")),
            ["2001-09-09 01:46:40.000000000", None, "2001-09-09 01:46:40.000000001"],
        ),
        (
            pa.array([10**18], pa.timestamp("ns", tz="UTC")),
            ["2001-09-09 01:46:40.000000000Z"],
        ),
        (pa.array([1, None, 1001], pa.duration("ns")), ["1", None, "1001"]),
        (pa.array([1001], pa.time64("ns")), ["00:00:00.000001001"]),
        (
            pa.array([1, 2**30], pa.date32()),
            [datetime.date(1970, 1, 2), f"<value out of range: {2**30}>"],
        ),
        (
            pa.array([0, 2**62], pa.timestamp("us")),
            [datetime.datetime(1970, 1, 1), f"<value out of range: {2**62}>"],
        ),
        (
            pa.array([10**15], pa.timestamp("us", tz="Mars/Olympus")),
            ["2001-09-09 01:46:40.000000Z"],
        ),
        (pa.array([1], pa.date32()), [datetime.date(1970, 1, 2)]),
        (pa.array([1], pa.duration("us")), [datetime.timedelta(microseconds=1)]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_times_that_python_has_not_are_text(file: Path, column: Any, values: list[Any]) -> None:  # noqa: ANN401
    pq.write_table(pa.table({"prompt": ["q"] * len(values), "a": column}), file)
    assert list(read_parquet(file)) == [{"prompt": "q", "a": value} for value in values]


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers()), "UTF8"),
        (pa.array([[0], [2**62], [0]], pa.list_(pa.timestamp("us"))), "date value out of range"),
    ],
    ids=["no UTF-8", "beyond the calendar"],
)
def test_a_value_python_has_not_costs_its_row(file: Path, column: Any, reason: str) -> None:  # noqa: ANN401
    pq.write_table(pa.table({"a": column}), file)
    rows = list(read_rows(file))
    assert [row.line for row in rows] == [1, 2, 3]
    assert [row.columns is None for row in rows] == [False, True, False]
    assert rows[1].code == "E_PARQUET_VALUE"
    assert reason in (rows[1].reason or "")


def test_a_file_that_fills_the_memory_is_refused(file: Path) -> None:
    """A few kilobytes that say `the same 64 MB a hundred times`."""
    text = pa.array(["x" * (64 << 20)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), text)
    pq.write_table(pa.table({"a": column}), file, compression="zstd")
    assert file.stat().st_size < 100_000
    with pytest.raises(InputError, match="needs more than 4 GiB"):
        list(read_parquet(file))


def test_a_file_that_takes_too_long_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_SECONDS_A_BATCH", 0)
    pq.write_table(pa.table({"a": [[str(n)] * 9 for n in range(1000)] * 300}), file)
    with pytest.raises(InputError, match="it took too long"):
        list(read_parquet(file))


@pytest.mark.parametrize("death", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_parser_that_dies_is_one_clear_error(
    file: Path, children: list[subprocess.Popen[bytes]], death: signal.Signals
) -> None:
    pq.write_table(pa.table({"a": ["text" * 99] * 50_000}), file)
    rows = read_parquet(file)
    assert next(rows)
    children[0].send_signal(death)
    with pytest.raises(InputError, match=r"a\.parquet:\d+: does not read as Parquet") as caught:
        list(rows)
    words = "killed" if death == signal.SIGKILL else death.name
    assert words in str(caught.value)


def test_the_child_ends_with_its_reader(
    file: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    pq.write_table(pa.table({"a": ["text" * 99] * 50_000}), file)
    rows = read_parquet(file)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert children[0].poll() is not None


def turn(*names: str) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(["a"])] * len(names), names=list(names))


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ([("a", ["x"]), ("a", ["y"])], "a"),
        ([("a", ["x"]), ("turn", turn("role", "b", "role"))], "turn.role"),
        ([("turns", pa.ListArray.from_arrays([0, 1], turn("b", "b")))], "turns.element.b"),
    ],
)
def test_a_name_that_comes_twice_is_refused(
    file: Path, columns: list[tuple[str, Any]], name: str
) -> None:
    """A row as a dict would have the last of them, without a word."""
    names, arrays = zip(*columns, strict=True)
    pq.write_table(pa.table(list(arrays), names=list(names)), file)
    said = f"does not read as Parquet: it has the column `{name}` 2 times, expected each name once"
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        list(read_parquet(file))
    assert caught.value.hint
    with pytest.raises(ParquetError, match="2 times"):
        read_parquet_table(file, ["a"])


def test_a_name_may_come_again_within_another_column(file: Path) -> None:
    pq.write_table(pa.table({"a": turn("a", "b"), "b": turn("a", "b")}), file)
    assert list(read_parquet(file)) == [{"a": {"a": "a", "b": "a"}, "b": {"a": "a", "b": "a"}}]


def test_a_table_has_the_columns_asked_for_that_are_there(file: Path) -> None:
    whole = pa.table({"a": list(range(3000)), "b": ["x"] * 3000, "c": [0.5] * 3000})
    pq.write_table(whole, file)
    assert read_parquet_table(file, ["c", "no", "a"]).equals(whole.select(["c", "a"]))
    pq.write_table(whole.slice(0, 0), file)
    assert read_parquet_table(file, ["a"]).num_rows == 0
    assert read_parquet_table(file, ["no"]).num_columns == 0
    file.write_bytes(b"PAR1")
    with pytest.raises(ParquetError):
        read_parquet_table(file, ["a"])
