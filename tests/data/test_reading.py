from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fam_engine.data.reading import check_file, hash_file, read_rows
from fam_engine.errors import InputError


def test_json_lines_give_every_row_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n{"a": NaN}\n{"a": 2}')
    rows = list(read_rows(file))
    assert [(row.line, row.offset, row.columns) for row in rows] == [
        (1, 0, {"a": 1}),
        (3, 10, None),
        (4, 21, {"a": 2}),
    ]
    assert rows[1].code
    assert rows[1].reason


def test_parquet_gives_the_same_rows_as_json_lines(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "correct": None if i % 3 else True} for i in range(2500)]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=700)
    read = list(read_rows(file))
    assert [row.columns for row in read] == rows
    assert [row.line for row in read] == list(range(1, 2501))


def test_nan_of_parquet_is_null(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"group": [math.nan, 1.5, None], "prompt": ["a", "b", "c"]}), file)
    assert [row.columns for row in read_rows(file)] == [
        {"group": None, "prompt": "a"},
        {"group": 1.5, "prompt": "b"},
        {"group": None, "prompt": "c"},
    ]


def test_a_damaged_parquet_file_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(100))}), file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="Parquet"):
        list(read_rows(file))


def test_missing_folders_and_unknown_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        check_file(str(tmp_path / "no.jsonl"))
    with pytest.raises(InputError, match="not a plain file"):
        check_file(str(tmp_path))
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"ending `\.csv`"):
        check_file(str(tmp_path / "a.csv"))


def test_lines_that_end_as_on_an_old_mac_name_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\r{"a": 2}\r')
    with pytest.raises(InputError, match=r"carriage return .*\(convert it: tr ") as caught:
        check_file(str(file))
    assert caught.value.code == "E_INPUT_KIND"
    for fine in (
        b'{"a": 1}\r\n{"a": 2}\r\n',
        b'{"a": "}\\r{"}',
        b'{"a":\r1}\r',
        b'{"a": 1}\n{}\r{}',
    ):
        file.write_bytes(fine)
        assert check_file(str(file)) == file


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert hash_file(file).startswith("ba7816bf8f01cfea")
