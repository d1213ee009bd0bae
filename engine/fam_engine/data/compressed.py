"""Files compressed by gzip or Zstandard, as streams of the bytes they hold.

In: the path of `a.jsonl.gz` or `a.jsonl.zst`, of one member or frame or of many. Out: its content, a piece at a time,
or an `InputError` that names the line up to which it could be read. Every reader of ours takes a file once from its
beginning to its end, so nothing is unpacked to disk: memory stays that of a plain file, and the window of Zstandard,
128 MiB at most; a file that needs more is refused. The codecs are those of pyarrow, which is here for Parquet, has both
kinds, checks sums and ends, and lets go of the interpreter while it works. Python's `gzip`, a fifth slower, takes over
where pyarrow's fails in a file that ends in NUL bytes: tapes fill their last block up with them, and gzip passes them
by. They run in the process itself, unlike Parquet: both are small formats whose decoders are made for hostile input.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from fam_engine.errors import InputError

# Of content at a time: what an error says of the last line read may be short by so much.
_PIECE_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class _Compression:
    """A compression: what it is called, what pyarrow calls it, how its files may begin."""

    name: str
    codec: str
    starts: tuple[bytes, ...]


_COMPRESSIONS: Final = {
    ".gz": _Compression("gzip", "gzip", (b"\x1f\x8b",)),
    # A frame, or one that is to be skipped, as parallel compressors write.
    ".zst": _Compression(
        "Zstandard",
        "zstd",
        (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))),
    ),
}
COMPRESSED_SUFFIXES: Final = tuple(_COMPRESSIONS)


class ByteStream(Protocol):
    """What is read once, from its beginning to its end."""

    def read(self, size: int, /) -> bytes:
        """Give the next `size` bytes, at the end those that are left."""

    def tell(self) -> int:
        """Give the number of bytes read."""


def uncompressed_name(path: Path) -> Path:
    """Give a path as it would be if the file were not compressed: `a.jsonl` for `a.jsonl.gz`."""
    return path.with_suffix("") if _compression_of(path) else path


def is_compressed(path: Path) -> bool:
    """Whether a file's name says that it is compressed."""
    return _compression_of(path) is not None


def check_compression(name: str) -> None:
    """Make sure that a file is compressed as its name says, by its first bytes.

    Raises:
        InputError: It is not.
        OSError: It cannot be read.
    """
    path = Path(name)
    with path.open("rb") as file:
        start = file.read(4)
    promised = _compression_of(path)
    if promised is not None:
        if not start.startswith(promised.starts):
            raise InputError(
                f"is not {promised.name} as its ending `{path.suffix}` says",
                code="E_INPUT_KIND",
                where=name,
                hint=f"rename it to {uncompressed_name(path).name} if it is plain text, or fetch it again",
            )
        return
    for suffix, compression in _COMPRESSIONS.items():
        if start.startswith(compression.starts):
            raise InputError(
                f"is compressed ({compression.name}), expected the ending `{path.suffix}{suffix}`",
                code="E_INPUT_KIND",
                where=name,
                hint=f"rename it to {path.name}{suffix}",
            )


@contextmanager
def open_bytes(path: Path) -> Iterator[ByteStream]:
    """Open a file, compressed or not, to read its content.

    Raises:
        OSError: It cannot be opened.
    """
    with CompressedFile(path) if is_compressed(path) else path.open("rb") as file:
        yield file


class CompressedFile:
    """The content of a compressed file.

    Args:
        path: The file, by a name that `is_compressed`.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow

        compression = _compression_of(path)
        assert compression is not None
        self._path = path
        self._compression = compression
        self._stream: Any = pyarrow.input_stream(str(path), compression=compression.codec)
        self._num_bytes = 0
        self._num_lines = 0

    def read(self, size: int, /) -> bytes:
        """Give the next `size` bytes of the content, at the end those that are left.

        Raises:
            InputError: The file is damaged, or ends too early.
            OSError: It cannot be read.
        """
        pieces = []
        while size > 0 and (piece := self._read_piece(min(size, _PIECE_BYTES))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _read_piece(self, size: int) -> bytes:
        try:
            piece: bytes = self._stream.read(size)
        except (OSError, EOFError, zlib.error) as error:
            # What the system says has a number, what a codec says has none.
            if getattr(error, "errno", None) is not None:
                raise
            if not self._may_be_padded():
                raise self._damaged(error) from None
            self._skip_padding()
            return self._read_piece(size)
        self._num_bytes += len(piece)
        self._num_lines += piece.count(b"\n")
        return piece

    def tell(self) -> int:
        """Give the number of bytes of the content read so far."""
        return self._num_bytes

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def _may_be_padded(self) -> bool:
        if self._compression.codec != "gzip" or isinstance(self._stream, gzip.GzipFile):
            return False
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\0"

    def _skip_padding(self) -> None:
        """Go on with a reader that passes NUL bytes after a member by, from what has been read."""
        self._stream.close()
        self._stream = gzip.open(self._path)  # noqa: SIM115 - until `close`
        self._stream.seek(self._num_bytes)

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"does not read as {self._compression.name} after line {self._num_lines:,}: {error}",
            code="E_INPUT_COMPRESSED",
            where=f"{self._path}:{self._num_lines + 1}",
            hint="fetch it again, or compress it anew",
        )


def _compression_of(path: Path) -> _Compression | None:
    return _COMPRESSIONS.get(path.suffix.lower())
