"""`JsonLinesReader`: what it passes Python's `json` reads, what it refuses it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fam_engine._rust_tokenize import JsonLinesReader

Row = tuple[int, int, str | None, str | None, str | None]


def write(folder: Path, content: bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(content)
    return path


def read_all(reader: JsonLinesReader, max_lines: int = 7) -> list[Row]:
    rows: list[Row] = []
    while batch := reader.read_batch(max_lines):
        rows.extend(batch)
    return rows


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"a":"\xff"}', "E_JSON_UTF8"),
        (b'{"a":"\xc0\xaf"}', "E_JSON_UTF8"),
        (b'{"a":NaN}', "E_JSON_NUMBER"),
        (b'{"a":-Infinity}', "E_JSON_NUMBER"),
        (b'{"a":1e999}', "E_JSON_NUMBER"),
        (b'{"a":' + b"9" * 5000 + b"}", "E_JSON_NUMBER"),
        (rb'{"a":"\ud800"}', "E_JSON_SURROGATE"),
        (b'{"a":1,"a":2}', "E_JSON_DUPLICATE_KEY"),
        (b'\xef\xbb\xbf{"a":1}', "E_JSON_SYNTAX"),
        (b'{"a":1}{"a":2}', "E_JSON_SYNTAX"),
        (b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}", "E_JSON_DEPTH"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "E_JSON_DEPTH"),
        (b"[1, 2]", "E_JSON_NOT_OBJECT"),
        (b'{"a":"b', "E_JSON_SYNTAX"),
        (b'{"a":"' + b"x" * 500_000 + b'"}', "E_JSON_LINE_TOO_LONG"),
        (b"\x00\x00", "E_JSON_SYNTAX"),
    ],
)
def test_a_bad_line_between_two_good_ones(tmp_path: Path, line: bytes, code: str) -> None:
    path = write(tmp_path, b'{"n":1}\n' + line + b'\n{"n":3}\n')
    reader = JsonLinesReader(path, max_line_bytes=450_000)
    first, bad, last = read_all(reader)
    assert first == (1, 0, '{"n":1}', None, None)
    assert last == (3, len(line) + 9, '{"n":3}', None, None)
    assert bad[:4] == (2, 8, None, code)
    assert bad[4] is not None
    assert bad[4].startswith("column ")


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    text = '{"a":"x\u2028y\u0085z\x0b"}'.replace("\x0b", "\\u000b")
    path = write(tmp_path, f"\ufeff{text}\r\n\n  \n{text}".encode())
    rows = read_all(JsonLinesReader(path))
    assert [row[0] for row in rows] == [1, 4]
    assert [row[2] for row in rows] == [text + "\r", text]
    assert rows[0][1] == 3


def test_the_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    content = b'{"a":1}\n' * 100_000 + b"not json"
    reader = JsonLinesReader(str(write(tmp_path, content)))
    first = reader.read_batch(10)
    assert len(first) == 10
    assert reader.bytes_read == 80
    read_all(reader, 1000)
    assert reader.bytes_read == len(content)
    assert reader.read_batch(10) == []


def test_a_batch_of_long_lines_ends_early(tmp_path: Path) -> None:
    line = b'{"a":"' + b"x" * (6 << 20) + b'"}\n'
    reader = JsonLinesReader(write(tmp_path, line * 4))
    assert [len(reader.read_batch(100)) for _ in range(3)] == [3, 1, 0]


def test_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        JsonLinesReader(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        JsonLinesReader(tmp_path).read_batch(1)
    with pytest.raises(ValueError, match="max_lines"):
        JsonLinesReader(write(tmp_path, b"")).read_batch(0)


def strict_loads(text: str) -> object:
    """Python's reader with its leniencies taken away."""

    def refuse(name: str) -> object:
        raise ValueError(name)

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("duplicate")
        return dict(pairs)

    value = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # infinities, lone surrogates
    return value


PIECES = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"a"',
    '"b"',
    "1",
    "-0.5e3",
    "1e999",
    "true",
    " ",
    "\\",
    '"',
    "NaN",
    "\t",
    "é",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
LINES = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=10).map("".join),
    st.dictionaries(st.text(max_size=3), VALUES, max_size=3).map(json.dumps),
    st.dictionaries(st.text(max_size=3), VALUES, max_size=3).map(
        lambda value: json.dumps(value, ensure_ascii=False)
    ),
)


@settings(max_examples=400, deadline=None)
@given(LINES, st.integers(0, 100), st.sampled_from(["", *PIECES]))
def test_judged_as_python_judges(
    tmp_path_factory: pytest.TempPathFactory, line: str, place: int, piece: str
) -> None:
    line = line[:place] + piece + line[place:]
    rows = read_all(JsonLinesReader(write(tmp_path_factory.mktemp("lines"), line.encode())))
    try:
        accepted = isinstance(strict_loads(line), dict)
    except (ValueError, RecursionError):
        accepted = False
    if not line.strip(" \t\r"):
        assert rows == []
    else:
        assert [row[2] is not None for row in rows] == [accepted]
