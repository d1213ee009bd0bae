"""Reading safetensors files without trusting them.

In: a model's folder. Out: what every tensor is and where it lies (`list_tensors`), and one tensor
at a time (`read_tensor`). Headers are read by ourselves, in full, before any weight: lengths,
dtypes, shapes and offsets must fit each other and the file, without holes or overlaps, so that
nothing is allocated that the file does not hold. Tensors are then copied with plain reads: a mapped
file that shrinks underneath (a network disk, a re-download) kills the process by SIGBUS, a short
read is an error that can be told. Pickled checkpoints are never opened.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

import torch

from fam_engine.data.plain_files import parse_json_object, plain_file, read_json_object
from fam_engine.errors import ModelRefusedError
from fam_engine.model.fields import Json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

CODE: Final = "E_MODEL_FILES"
MAX_HEADER_BYTES: Final = 100_000_000  # the format's own limit
DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT: Final = (
    "unpickling runs code: convert it to safetensors in a place you trust, with transformers' "
    "from_pretrained(...) and save_pretrained(...)"
)


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        shape: Its shape.
        path: The file it is in.
        start: Its first byte in the file.
        num_bytes: Its length in bytes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    path: Path
    start: int
    num_bytes: int


def list_tensors(folder: Path) -> dict[str, TensorInfo]:
    """List the tensors of a checkpoint, in one file or in the shards its index names.

    Raises:
        ModelRefusedError: No safetensors, pickles only, a malformed file, or an index that does not
            fit its shards.
    """
    if (folder / "model.safetensors").exists():  # before the index, as in transformers
        return read_header(plain_file(folder, "model.safetensors", code=CODE))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _list_shards(folder, index)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        message = f"the weights are pickled (`{pickles[0]}`); only safetensors are read"
        raise ModelRefusedError(message, code="E_MODEL_PICKLE", where=str(folder), hint=_CONVERT)
    message = "neither `model.safetensors` nor `model.safetensors.index.json` is there"
    raise ModelRefusedError(message, code=CODE, where=str(folder))


def _list_shards(folder: Path, index: Path) -> dict[str, TensorInfo]:
    """List the tensors of all shards; each must be where the index says, and none elsewhere."""
    path = plain_file(folder, index.name, code=CODE)
    places = read_json_object(path, code=CODE).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ModelRefusedError(
            "`weight_map` is not an object of names", code=CODE, where=str(path)
        )
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(set(places.values())):
        if not file.endswith(".safetensors"):
            message = f"`weight_map` names {file!r}; expected a .safetensors file"
            raise ModelRefusedError(message, code=CODE, where=str(path))
        shard = read_header(plain_file(folder, file, code=CODE))
        for name in shard:
            if places.get(name) != file:
                message = (
                    f"`{file}` holds the tensor `{name}`, which the index does not place there"
                )
                raise ModelRefusedError(message, code=CODE, where=str(path))
        tensors |= shard
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        message = f"`{places[missing[0]]}` does not hold the tensor `{missing[0]}` of the index"
        raise ModelRefusedError(message, code=CODE, where=str(path))
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read what a safetensors file holds, ordered by place.

    Args:
        path: The file; the caller has checked that it may be opened.

    Raises:
        ModelRefusedError: Anything about it that is not as the format says.
    """
    raw, file_bytes = _read_raw_header(path)
    first = 8 + len(raw)
    header = parse_json_object(raw, code=CODE, where=str(path))
    header.pop("__metadata__", None)  # see `read_metadata`
    tensors = [_read_entry(name, entry, path, first) for name, entry in header.items()]
    tensors.sort(key=lambda info: (info.start, info.num_bytes))
    end = first
    for info in tensors:
        if info.start != end:
            _refuse(path, info.name, f"begins at byte {info.start}, the one before ends at {end}")
        end = info.start + info.num_bytes
    if end != file_bytes:
        message = (
            f"the tensors end at byte {end}, the file at {file_bytes}: it is cut short or longer"
        )
        raise ModelRefusedError(message, code=CODE, where=str(path), hint="copy it again")
    return {info.name: info for info in tensors}


def read_metadata(path: Path) -> dict[str, str]:
    """Read what a file says of itself: whatever it holds that is no text is left out.

    Raises:
        ModelRefusedError: No safetensors file.
    """
    raw, _ = _read_raw_header(path)
    found = parse_json_object(raw, code=CODE, where=str(path)).get("__metadata__")
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}


def _read_raw_header(path: Path) -> tuple[bytes, int]:
    """Give the JSON of a header, and the length of the file."""
    try:
        with path.open("rb") as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            header_bytes = int.from_bytes(file.read(8), "little")
            if file_bytes >= 8 and header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
                return file.read(header_bytes), file_bytes
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ModelRefusedError(message, code=CODE, where=str(path)) from error
    message = f"not a safetensors file, or cut short: its header would be {header_bytes} bytes"
    raise ModelRefusedError(message, code=CODE, where=str(path))


def _read_entry(name: str, entry: Json, path: Path, first: int) -> TensorInfo:
    """Check one entry of a header, `first` being the byte where data begins."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            pass
        case _:
            _refuse(path, name, "has no dtype, shape and data_offsets")
    dtype = DTYPES.get(kind)
    if dtype is None:
        _refuse(path, name, f"has the dtype {kind!r}; supported: {', '.join(DTYPES)}")
    if any(type(size) is not int or size < 0 for size in shape):
        _refuse(path, name, f"has the shape {shape}")
    num_bytes = math.prod(shape) * dtype.itemsize
    if start < 0 or stop - start != num_bytes:
        _refuse(path, name, f"of {num_bytes} bytes has the offsets {start} to {stop}")
    return TensorInfo(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        path=path,
        start=first + start,
        num_bytes=num_bytes,
    )


def _refuse(path: Path, name: str, problem: str) -> NoReturn:
    message = f"the tensor `{name}` {problem}"
    raise ModelRefusedError(message, code=CODE, where=str(path))


def read_start(info: TensorInfo, num_bytes: int) -> bytes:
    """Read the first bytes of a tensor, or all if it has fewer.

    Raises:
        ModelRefusedError: The file has become unreadable since its header was read.
    """
    try:
        with info.path.open("rb", buffering=0) as file:
            file.seek(info.start)
            return file.read(min(num_bytes, info.num_bytes))
    except OSError as error:
        message = f"reading the tensor `{info.name}`: {error}"
        raise ModelRefusedError(message, code=CODE, where=str(info.path)) from error


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """Copy one tensor from its file into memory, on the CPU, in its stored dtype and shape.

    Raises:
        ModelRefusedError: The file has become shorter or unreadable since its header was read.
    """
    tensor = torch.empty(info.shape, dtype=info.dtype)
    if info.num_bytes:
        with opened(info) as fill:
            fill(memoryview(tensor.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return tensor


@contextlib.contextmanager
def opened(info: TensorInfo) -> Iterator[Callable[[memoryview], None]]:
    """Open a tensor's file; give what fills a buffer with the tensor's next bytes.

    Raises:
        ModelRefusedError: The file has become shorter or unreadable since its header was read.
    """
    try:
        with info.path.open("rb", buffering=0) as file:
            file.seek(info.start)
            yield partial(_fill, file)
    except OSError as error:
        message = f"reading the tensor `{info.name}`: {error}"
        raise ModelRefusedError(message, code=CODE, where=str(info.path)) from error


def _fill(file: FileIO, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):  # Linux reads at most 2 GiB at once
        count = file.readinto(buffer[done:])
        if not count:
            raise OSError("the file ends before the tensor does")
        done += count
