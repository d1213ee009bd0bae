"""A `.json` file with one array is read element by element, as strictly as lines are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fam_engine.data import json_arrays
from fam_engine.data.reading import read_rows
from fam_engine.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "data.json"
    path.write_bytes(content)
    return path


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), max_size=6),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.sampled_from([1, 3, 1 << 20]),
)
def test_elements_are_those_of_pythons_json(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, object]],
    indent: int | None,
    ascii_only: bool,
    chunk: int,
) -> None:
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode()
    path = write(tmp_path_factory.mktemp("arrays"), content)
    with pytest.MonkeyPatch.context() as patch:
        # Texts, escapes and elements that go on beyond what is held, and batches of one.
        patch.setattr(json_arrays, "_CHUNK_BYTES", chunk)
        patch.setattr(json_arrays, "_BATCH_BYTES", chunk)
        read = list(read_rows(path))
    assert [row.columns for row in read] == rows
    assert [row.line for row in read] == list(range(1, len(rows) + 1))
    for row in read:
        assert row.offset is not None
        assert content[row.offset : row.offset + 1] == b"{"


@pytest.mark.parametrize(
    ("element", "code"),
    [
        (b'{"a":NaN}', "E_JSON_NUMBER"),
        (b'{"a":1,"a":2}', "E_JSON_DUPLICATE_KEY"),
        (b'{"a":"x\ny"}', "E_JSON_SYNTAX"),
        (b'{"a":"\xff"}', "E_JSON_UTF8"),
        (b'{"a" 1}', "E_JSON_SYNTAX"),
        (b"[{}]", "E_JSON_NOT_OBJECT"),
        (b'"a]"', "E_JSON_NOT_OBJECT"),
        (b"7", "E_JSON_NOT_OBJECT"),
    ],
)
def test_a_bad_element_between_two_good_ones(tmp_path: Path, element: bytes, code: str) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf [{"n":1},\n ' + element + b' ,{"n":\n3}]\n')
    first, bad, last = read_rows(path)
    assert (first.columns, last.columns, last.line) == ({"n": 1}, {"n": 3}, 3)
    assert (bad.line, bad.offset, bad.columns, bad.code) == (2, 15, None, code)
    assert bad.reason is not None
    assert bad.reason.startswith("column ")


@pytest.mark.parametrize(
    ("text", "byte"),
    [(b"x\ny", "0x0A"), (b"x\ry", "0x0D"), (b"\\\ny\r", "0x0A"), (b"\r\n", "0x0D")],
)
def test_a_line_end_in_a_text_is_named_as_it_is_written(
    tmp_path: Path, text: bytes, byte: str
) -> None:
    (row,) = read_rows(write(tmp_path, b'[{"a"\n:\r"' + text + b'"}]'))
    assert f"found byte {byte}" in (row.reason or "")


@pytest.mark.parametrize(
    ("content", "after", "found"),
    [
        (b'[{"a":1}', 0, "end of the file"),
        (b'[{"a":1},', 1, "end of the file"),
        (b'[{"a":1}] 2', 1, "more text"),
        (b'[{"a":1},]', 1, "nothing before `]`"),
        (b'[,{"a":1}]', 0, "nothing before `,`"),
        (b'[{"a":"b]', 0, "end of the file"),
        (b'[{"a":1}}', 1, "`}`, before `]`"),
        (b'[{"a":1},2}]', 2, "`}`, before `]`"),
        (b"[}", 0, "`}`, before `]`"),
    ],
)
def test_a_damaged_array_is_one_clear_error(
    tmp_path: Path, content: bytes, after: int, found: str
) -> None:
    with pytest.raises(InputError, match=f"after element {after}: found .*{found}"):
        list(read_rows(write(tmp_path, content)))


def test_an_element_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_arrays, "_CHUNK_BYTES", 16)
    monkeypatch.setattr(json_arrays, "MAX_ELEMENT_BYTES", 100)
    with pytest.raises(InputError, match="element of more than"):
        list(read_rows(write(tmp_path, b'[{"a":"' + b"x" * 10000 + b'"}]')))


def test_small_elements_are_read_a_bounded_number_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path, b"[" + b"1," * 5000 + b"{}]")
    with path.open("rb") as file:
        json_arrays._skip_to_array(file)
        sizes = [len(batch) for batch in json_arrays._batches(json_arrays._elements(path, file))]
    assert sizes == [1024] * 4 + [905]
    rows = list(read_rows(path))
    assert [row.line for row in rows] == list(range(1, 5002))
    assert rows[-1].columns == {}


def test_an_empty_array_has_no_rows_and_lines_stay_lines(tmp_path: Path) -> None:
    assert list(read_rows(write(tmp_path, b" [ ]\n"))) == []
    assert [row.columns for row in read_rows(write(tmp_path, b'{"a":1}\n{"a":2}\n'))] == [
        {"a": 1},
        {"a": 2},
    ]
