"""What is compressed reads as what it holds; what is damaged is one error that names the line."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from fam_engine._rust_tokenize import JsonLinesReader
from fam_engine.data import json_arrays
from fam_engine.data.compressed import CompressedFile
from fam_engine.data.reading import check_file, data_stem, is_json_lines, open_lines, read_rows
from fam_engine.errors import InputError

Compress = Callable[[bytes], bytes]


def zstandard(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Compress] = {".gz": gzip.compress, ".zst": zstandard}
NAMES = {".gz": "gzip", ".zst": "Zstandard"}
# A frame of 8 bytes that readers skip, such as `pzstd` writes.
SKIPPABLE = b"\x50\x2a\x4d\x18\x08\x00\x00\x00" + bytes(8)


def some_lines(count: int) -> bytes:
    """Lines that hardly compress, so that a part of a file holds a part of the lines."""
    rng = random.Random(0)
    rows = ({"a": number, "b": rng.randbytes(40).hex()} for number in range(count))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture(params=COMPRESS)
def ending(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rows_are_those_of_the_plain_file(tmp_path: Path, ending: str) -> None:
    content = b'\xef\xbb\xbf{"a": 1}\n\n{"a": NaN}\n' + some_lines(5000) + b'{"a": 2}'
    plain, packed = tmp_path / "a.jsonl", tmp_path / f"a.jsonl{ending}"
    plain.write_bytes(content)
    packed.write_bytes(COMPRESS[ending](content))
    rows = list(read_rows(packed))
    assert rows == list(read_rows(plain))
    assert len(rows) == 5003
    reader = open_lines(packed)
    while len(reader.read_chunk(100)):
        pass
    assert reader.bytes_read == len(content)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b" \n"])
def test_arrays_read_like_the_plain_ones(tmp_path: Path, ending: str, mark: bytes) -> None:
    content = mark + b'[{"a": 1},\n {"a": NaN}, {"a": "' + b"x" * 200_000 + b'"}]'
    plain, packed = tmp_path / "a.json", tmp_path / f"a.json{ending}"
    plain.write_bytes(content)
    packed.write_bytes(COMPRESS[ending](content))
    assert not is_json_lines(packed)
    rows = list(read_rows(packed))
    assert rows == list(read_rows(plain))
    assert [row.offset for row in rows] == [len(mark) + place for place in (1, 12, 24)]
    packed.write_bytes(COMPRESS[ending](b'{"a": 1}\n{"a": 2}\n'))
    assert is_json_lines(packed)


def test_members_and_frames_one_after_the_other_are_one_file(tmp_path: Path, ending: str) -> None:
    content, compress = some_lines(3000), COMPRESS[ending]
    half = len(content) // 2 + 5  # within a line
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(content[:half]) + compress(b"") + compress(content[half:]))
    assert [row.line for row in read_rows(path)] == list(range(1, 3001))


def test_frames_to_be_skipped_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(SKIPPABLE + zstandard(b'{"a": 1}\n') + SKIPPABLE)
    assert check_file(str(path)) == path
    assert [row.columns for row in read_rows(path)] == [{"a": 1}]


def test_nothing_compressed_is_a_file_without_rows(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](b""))
    assert list(read_rows(check_file(str(path)))) == []


@pytest.mark.parametrize("kept", [1 / 2, 1 - 1e-6])
def test_a_cut_file_names_the_line_up_to_which_it_read(
    tmp_path: Path, ending: str, kept: float
) -> None:
    content = some_lines(20_000)
    packed = COMPRESS[ending](content)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(packed[: int(kept * len(packed))])
    rows = []
    with pytest.raises(InputError, match="does not read as") as caught:
        rows.extend(read_rows(path))
    error = caught.value
    assert error.code == "E_INPUT_COMPRESSED"
    assert NAMES[ending] in error.message
    name, _, line = (error.where or "").rpartition(":")
    assert name == str(path)
    assert f"after line {int(line) - 1:,}: " in error.message
    # Not beyond what is there, and no further before it than two pieces hold.
    there = kept * 20_000
    assert there - 2 * 65536 / (len(content) / 20_000) - 400 < int(line) - 1 <= there + 400


def test_a_sum_that_does_not_fit_is_damage(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b'{"a": 1}\n'))
    packed[-8] ^= 1  # of the checksum: the content is whole
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz:1: does not read as gzip after line 0"):
        list(read_rows(path))


def test_what_follows_a_whole_member_is_damage(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](b'{"a": 1}\n') + b"something else")
    with pytest.raises(InputError, match="does not read as"):
        list(read_rows(path))


@pytest.mark.parametrize("num_lines", [0, 1, 5000])
@pytest.mark.parametrize("padding", [1, 8, 512, 100_000])
def test_padding_behind_the_last_member_is_passed_by(
    tmp_path: Path, num_lines: int, padding: int
) -> None:
    """As gzip does: tapes fill the last block up with NUL bytes."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(some_lines(num_lines)) * 2 + bytes(padding))
    assert [row.line for row in read_rows(path)] == list(range(1, 2 * num_lines + 1))


@pytest.mark.parametrize("behind", [b"x\0", b"\0x\0", b"\x1f\x8b\0\0", b"\x1f\x8b\x08" + bytes(20)])
def test_what_only_ends_like_padding_is_damage(tmp_path: Path, behind: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(some_lines(5000))
    for content in (packed + behind, packed[:-50] + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"does not read as gzip after line [\d,]+: "
        ) as caught:
            list(read_rows(path))
        assert caught.value.code == "E_INPUT_COMPRESSED"


def test_damage_in_an_array_names_the_line(tmp_path: Path, ending: str) -> None:
    rows = json.dumps([{"a": number} for number in range(20_000)], indent=1).encode()
    packed = COMPRESS[ending](rows)
    path = tmp_path / f"a.json{ending}"
    path.write_bytes(packed[:-20])
    with pytest.raises(InputError, match=r"after line [1-9]") as caught:
        list(read_rows(path))
    assert caught.value.code == "E_INPUT_COMPRESSED"
    # What comes behind the array, or is missing there, is seen though all elements are.
    path.write_bytes(packed + b"something else")
    with pytest.raises(InputError, match=r"does not read as"):
        list(read_rows(path))


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_text_behind_an_array_is_found_wherever_a_chunk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_arrays, "_CHUNK_BYTES", chunk)
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}] \n')
    assert len(list(read_rows(path))) == 1
    path.write_bytes(b'[{"a":1}]x')
    with pytest.raises(InputError, match="more text after"):
        list(read_rows(path))


def test_an_ending_that_says_something_else_names_the_remedy(tmp_path: Path, ending: str) -> None:
    plain = tmp_path / "a.jsonl"
    plain.write_bytes(COMPRESS[ending](b'{"a": 1}\n'))
    with pytest.raises(InputError, match=rf"{NAMES[ending]}.*\(rename it to a\.jsonl{ending}\)"):
        check_file(str(plain))
    packed = tmp_path / f"b.jsonl{ending}"
    for content in (b'{"a": 1}\n', b""):
        packed.write_bytes(content)
        with pytest.raises(InputError, match=rf"is not {NAMES[ending]}.*rename it to b\.jsonl if"):
            check_file(str(packed))
    for name in ("a.csv", "a.parquet", "a"):
        other = tmp_path / f"{name}{ending}"
        other.touch()
        found = Path(name).suffix + ending
        with pytest.raises(InputError, match=rf"has the ending `{found}`, .*\.gz or \.zst"):
            check_file(str(other))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.JSON.ZST", "a.parquet"])
def test_endings_are_no_part_of_the_stem(name: str) -> None:
    assert data_stem(Path("folder.gz") / name) == "a"


def test_memory_does_not_grow_with_the_content(tmp_path: Path) -> None:
    """The content is 64 MB in a file of kilobytes."""
    path = tmp_path / "a.jsonl.gz"
    line = json.dumps({"a": "x" * 1000}).encode() + b"\n"
    path.write_bytes(gzip.compress(line * 1000, 1) * 64)
    tracemalloc.start()
    try:
        with CompressedFile(path) as file:
            count = sum(len(piece) for piece in iter(lambda: file.read(1 << 18), b""))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 64_000 * len(line)
    assert peak < 4 << 20


def test_what_the_system_says_stays_what_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))

    class Failing:
        def read(self, size: int) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(pa, "input_stream", lambda *args, **kwargs: Failing())
    with pytest.raises(InputError, match="cannot be read: Input/output error") as caught:
        list(read_rows(path))
    assert caught.value.code == "E_INPUT_FILE"
    assert caught.value.where == str(path)


class Source:
    """A file object that gives, or raises, one thing after the other."""

    def __init__(self, *things: object) -> None:
        self._things = iter(things)

    def read(self, size: int, /) -> bytes:
        thing = next(self._things, b"")
        if isinstance(thing, BaseException):
            raise thing
        return thing  # type: ignore[return-value]


def test_a_file_object_gives_lines_as_a_file_does() -> None:
    reader = JsonLinesReader("a", file=Source(b'{"a":', b'1}\n\n{"b"', b":2}", b""))
    assert reader.read_batch(5) == [(1, 0, '{"a":1}', None, None), (3, 9, '{"b":2}', None, None)]


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), InputError("x", code="E"), OSError("y")])
def test_what_a_file_object_raises_goes_through(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught:
        JsonLinesReader("a", file=Source(b'{"a":1}\n', raised)).read_batch(5)
    assert caught.value is raised


@pytest.mark.parametrize(
    ("given", "error"), [("text", TypeError), (None, TypeError), (b"x" * (1 << 20), ValueError)]
)
def test_a_file_object_that_is_none_is_refused(given: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        JsonLinesReader("a", file=Source(given)).read_batch(5)
    with pytest.raises(ValueError, match="max_line_bytes"):
        JsonLinesReader("a", file=Source(b""), max_line_bytes=0)


def test_as_much_is_read_as_was_asked_for(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](bytes(1 << 20)))
    with CompressedFile(path) as file:
        assert len(file.read(1_000_000)) == 1_000_000
        assert len(file.read(3)) == 3
        assert file.tell() == 1_000_003
        assert len(file.read(1 << 20)) == (1 << 20) - 1_000_003
        assert file.read(1) == b""
