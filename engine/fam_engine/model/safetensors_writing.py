"""Writing a safetensors file tensor by tensor.

In: names, dtypes and shapes, and a function that makes each tensor when its turn comes. Out: the
file. The format's own library wants all tensors of a file at once; a merged checkpoint may be one
file of 16 GB. And what the disk says reaches it as text alone: a full disk has to be an OSError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, Final

import torch

from fam_engine.model.safetensors_files import DTYPES

if TYPE_CHECKING:
    from pathlib import Path


# Dtype and shape of tensors by name.
Kinds = dict[str, tuple[torch.dtype, tuple[int, ...]]]
# Makes the tensor of a name and dtype, on the CPU.
Make = Callable[[str, torch.dtype], torch.Tensor]
_SPELLINGS: Final = {dtype: kind for kind, dtype in DTYPES.items()}


def write_tensors(
    path: Path,
    kinds: Kinds,
    make: Make,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write a file.

    Args:
        path: The file.
        kinds: Dtype and shape of each tensor by name. Wide dtypes come first, so that every tensor
            begins at a multiple of its item's size.
        make: Makes a tensor when its turn comes.
        metadata: What the file says of itself.

    Returns:
        The bytes of the tensors.

    Raises:
        OSError: The disk would not take it.
    """
    names = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    # PEFT and transformers write this mark too; older readers refuse files without it.
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in names:
        dtype, shape = kinds[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _SPELLINGS[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = make(name, kinds[name][0])
            assert (tensor.dtype, tuple(tensor.shape)) == kinds[name], name
            _write(file, tensor)
    return end


def save_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write tensors that are all there, on the CPU.

    Raises:
        OSError: The disk would not take it.
    """
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(path, kinds, lambda name, _: tensors[name], metadata)


def _write(file: BinaryIO, tensor: torch.Tensor) -> None:
    if tensor.numel():
        values = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        file.write(memoryview(values))  # type: ignore[arg-type]
