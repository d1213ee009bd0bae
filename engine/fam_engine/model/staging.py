"""Tensors on their way from files to a GPU, through two small buffers of page-locked memory.

In: where a tensor lies. Out: the tensor on the device, as stored. A GPU copies from page-locked memory by itself: while
one buffer is on its way, the other is filled from the file. So reading and copying take the time of the slower one, and
the host holds two buffers, whatever the size of a tensor. Not yet measured on a GPU.

Rejected: a page-locked tensor of the whole size, which torch rounds up to a power of two (2 GiB for the embedding of
Llama-3.1-8B) and keeps; `Tensor.to` from pageable memory, which copies through such buffers of the driver's, but only
after all is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from fam_engine.model.safetensors_files import TensorInfo, opened

# Long enough for a disk to read at its rate, and for the start of a copy (some 10 us) not to matter.
PIECE_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Memory of the host, and when the GPU has copied what it holds; None: at once."""

    memory: torch.Tensor
    is_copied: torch.cuda.Event | None


class Stage:
    """The buffers.

    Args:
        device: Where tensors go.
        piece_bytes: Size of a buffer.
    """

    def __init__(self, device: torch.device, *, piece_bytes: int = PIECE_BYTES) -> None:
        self._device = device
        is_gpu = device.type == "cuda"
        self._buffers = [
            _Buffer(
                torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=is_gpu),
                torch.cuda.Event() if is_gpu else None,
            )
            for _ in range(2)
        ]

    def read(self, info: TensorInfo) -> torch.Tensor:
        """Copy one tensor from its file to the device, in its stored dtype and shape; the last copy may be on its way.

        Raises:
            ModelRefusedError: The file has become shorter or unreadable since its header was read.
        """
        tensor = torch.empty(info.shape, dtype=info.dtype, device=self._device)
        if not info.num_bytes:
            return tensor
        pieces = tensor.view(-1).view(torch.uint8).split(len(self._buffers[0].memory))
        with opened(info) as fill:
            for number, piece in enumerate(pieces):
                buffer = self._buffers[number % 2]
                if buffer.is_copied is not None:
                    buffer.is_copied.synchronize()
                part = buffer.memory[: len(piece)]
                fill(memoryview(part.numpy()))  # type: ignore[arg-type]
                piece.copy_(part, non_blocking=True)
                if buffer.is_copied is not None:
                    buffer.is_copied.record()
        return tensor
