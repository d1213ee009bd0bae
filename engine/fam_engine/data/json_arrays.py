"""A `.json` file that holds one array of objects, read as if each element were a line.

In: a path. Out: what `JsonLinesReader` gives for a line, for each element: its number, where it starts, and its text or
what is wrong with it. Only the places where elements begin and end are found here; each element then goes through the
strict reader of JSON Lines in Rust, a few megabytes at a time by way of a temporary file, so that both kinds of file
are judged by one rule and in the same words, and memory is bounded by the longest element. Reading the whole array with
Python's `json` was rejected: it holds everything at once (some five times the file) and is lenient where we are not.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fam_engine._rust_tokenize import JsonLinesReader
from fam_engine.data.compressed import ByteStream, open_bytes
from fam_engine.errors import InputError

# Number, offset, text, code, reason: as `JsonLinesReader.read_batch` gives them.
Line = tuple[int, int, str | None, str | None, str | None]

MAX_ELEMENT_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_BATCH_BYTES, _BATCH_ELEMENTS = 16 << 20, 1024  # an element of a byte costs a hundred times that
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
# A whole text, or what may begin or end an element; a lone quotation mark is a text that goes on beyond the buffer.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\],]', re.DOTALL)
_LINE_END = re.compile(rb"[\r\n]")


def holds_array(path: Path) -> bool:
    """Whether the first character of a file opens an array."""
    with open_bytes(path) as file:
        return _skip_to_array(file)


def read_array(path: Path) -> Iterator[Line]:
    """Read the elements one after the other, numbered from 1; columns in reasons count from an element's start.

    Raises:
        InputError: The file is damaged between elements, so that what follows cannot be told apart.
        OSError: It cannot be read.
    """
    with (
        open_bytes(path) as file,
        tempfile.TemporaryDirectory(prefix="fam-engine-") as folder,
    ):
        _skip_to_array(file)
        lines = Path(folder) / "elements.jsonl"
        first = 1
        for batch in _batches(_elements(path, file)):
            # A carriage return is a blank to JSON as a newline is, and as illegal inside a text.
            lines.write_bytes(b"\n".join(text.replace(b"\n", b"\r") for _, text in batch))
            reader = JsonLinesReader(lines, max_line_bytes=MAX_ELEMENT_BYTES)
            while read := reader.read_batch(len(batch)):
                for line, _, *rest in read:
                    text, code, reason = rest
                    offset, element = batch[line - 1]
                    reason = reason and _as_written(reason, element)
                    yield first + line - 1, offset, text, code, reason
            first += len(batch)


def _as_written(reason: str, element: bytes) -> str:
    """Name the newline that stands in a text, where the carriage return is named that was read in its place."""
    if "0x0D" not in reason:
        return reason
    found = (_LINE_END.search(match[0]) for match in _TOKEN.finditer(element))
    end = next(filter(None, found), None)
    return reason.replace("0x0D", "0x0A") if end and end[0] == b"\n" else reason


def _skip_to_array(file: ByteStream) -> bool:
    """Move behind the `[` a file begins with; False if it begins otherwise."""
    byte = file.read(1)
    if byte == _BYTE_ORDER_MARK[:1]:
        mark = byte + file.read(2)
        byte = file.read(1) if mark == _BYTE_ORDER_MARK else byte
    while byte and byte in _BLANK:
        byte = file.read(1)
    return byte == b"["


def _elements(path: Path, file: ByteStream) -> Iterator[tuple[int, bytes]]:
    """Give where each element starts and its bytes; `file` stands behind the opening bracket."""
    buffer, offset = b"", file.tell()
    start = place = count = 0  # of the element and of the search, in the buffer
    depth = 1
    while True:
        for match in _TOKEN.finditer(buffer, place):
            token = match[0]
            if token == b'"':
                break
            place = match.end()
            depth += (token in (b"{", b"[")) - (token in (b"}", b"]"))
            if depth == 0 or (depth == 1 and token == b","):
                text = buffer[start : match.start()]
                bare = text.lstrip(_BLANK)
                if bare:
                    count += 1
                    yield offset + start + len(text) - len(bare), bare.rstrip(_BLANK)
                elif token == b"," or count:
                    raise _damaged(path, count, f"nothing before `{token.decode()}`")
                start = place
            if depth == 0:
                if token != b"]":
                    raise _damaged(path, count, f"`{token.decode()}`, before `]`")
                _check_end(path, count, buffer[place:], file)
                return
        buffer, offset, place, start = buffer[start:], offset + start, place - start, 0
        # As much again as there is: a long element is searched a few times, not once a chunk.
        more = file.read(max(_CHUNK_BYTES, len(buffer)))
        if not more:
            raise _damaged(path, count, "the end of the file, before `]`")
        if len(buffer) > MAX_ELEMENT_BYTES:
            raise _damaged(path, count, f"an element of more than {MAX_ELEMENT_BYTES >> 20} MiB")
        buffer += more


def _check_end(path: Path, count: int, rest: bytes, file: ByteStream) -> None:
    # To the very end: only there does a compressed file show whether it is whole.
    while not rest.strip(_BLANK):
        rest = file.read(_CHUNK_BYTES)
        if not rest:
            return
    raise _damaged(path, count, "more text after the closing `]`")


def _batches(elements: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    batch: list[tuple[int, bytes]] = []
    num_bytes = 0
    for element in elements:
        batch.append(element)
        num_bytes += len(element[1])
        if num_bytes >= _BATCH_BYTES or len(batch) == _BATCH_ELEMENTS:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _damaged(path: Path, count: int, found: str) -> InputError:
    return InputError(
        f"does not read as a JSON array after element {count:,}: found {found}",
        code="E_INPUT_JSON",
        where=str(path),
        hint="write it as JSON Lines, one object a line, or mend it",
    )
