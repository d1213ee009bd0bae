"""Inputs of layers between the forward and the backward pass of a micro-batch: on the device, or in the host's memory.

In: each layer's input, first to last. Out: the same, last to first. Those of the first layers may go to page-locked
memory of the host meanwhile, where `recomputation` says that the device's does not suffice. A stream of its own copies
each while its layer is computed, and brings it back while the layer above is computed backward: of a layer of
Llama-3.1-8B a token is 8 KB there and back, beside some 1.7 GFLOP. On an H100 its tests pass; its speed there was not
measured yet.

The stream that computes waits for a copy before the memory of the input is given back, so that the allocator need not
know of the other stream (with `Tensor.record_stream` memory would come back only when the host asks after the copy has
ended, and the host is far ahead); and copies begin after all that had been asked for before. So nothing waits on the
host, and at most one input is on the device beside that of the layer being computed.

The host's memory is kept for the next micro-batch, in chunks: torch rounds page-locked memory up to powers of two.

Letters: T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import torch

from fam_engine.model.memory import free_bytes
from fam_engine.model.out_of_memory import memory_errors

# Part of the host's free memory that inputs may take: page-locked memory cannot be swapped out.
SHARE_OF_HOST: Final = 0.8
_CHUNK_BYTES: Final = 32 << 20


class HostMemoryError(torch.OutOfMemoryError):
    """The host has not the memory that inputs of layers are to go to."""


class HostMemory:
    """Memory of the host for inputs of layers, page-locked if a GPU is to copy from and to it.

    Args:
        device: Where inputs are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_pinned = device.type == "cuda"
        self._chunks: list[torch.Tensor] = []

    def reserve(self, num_inputs: int, like_TD: torch.Tensor) -> list[list[torch.Tensor]]:
        """Give for each of so many inputs of one size the memory that it goes to, in pieces of rows.

        Raises:
            HostMemoryError: The host has not so much.
        """
        num_tokens, width = like_TD.shape
        rows = max(_CHUNK_BYTES // (width * like_TD.itemsize), 1)
        missing = max(-(-num_inputs * num_tokens // rows) - len(self._chunks), 0)
        needed = missing * rows * width * like_TD.itemsize
        if missing and needed > SHARE_OF_HOST * free_bytes(torch.device("cpu")):
            raise HostMemoryError(f"inputs of layers take {needed} bytes more of the host")
        for _ in range(missing):
            self._chunks.append(self._chunk((rows, width), like_TD.dtype))
        starts = range(0, num_inputs * num_tokens, num_tokens)
        return [list(self._pieces(start, start + num_tokens, rows)) for start in starts]

    def _pieces(self, start: int, stop: int, rows: int) -> Iterator[torch.Tensor]:
        """Yield rows from `start` to `stop` of all chunks, chunk after chunk."""
        while start < stop:
            number, first = divmod(start, rows)
            piece = self._chunks[number][first : first + stop - start]
            start += len(piece)
            yield piece

    def _chunk(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        try:
            with memory_errors():
                return torch.empty(shape, dtype=dtype, pin_memory=self._is_pinned)
        except torch.OutOfMemoryError as error:
            # Others need it more than a step that does without.
            self._chunks.clear()
            raise HostMemoryError(f"page-locked memory: {error}") from error


class LayerInputs:
    """The inputs of one micro-batch.

    Args:
        host: Where inputs go that are not kept on the device.
        num_on_host: Of how many layers, the first ones; not of all.
        like_TD: A tensor like each of them.

    Raises:
        HostMemoryError: The host has not so much.
    """

    def __init__(self, host: HostMemory, num_on_host: int, like_TD: torch.Tensor) -> None:
        self._on_host = host.reserve(num_on_host, like_TD) if num_on_host else []
        self._held: dict[int, torch.Tensor] = {}
        is_copied_aside = num_on_host > 0 and like_TD.is_cuda
        self._stream = torch.cuda.Stream(like_TD.device) if is_copied_aside else None

    def put(self, index: int, x_TD: torch.Tensor) -> None:
        """Take the input of the next layer."""
        self._wait()
        if 0 < index <= len(self._on_host):
            del self._held[index - 1]
        self._held[index] = x_TD
        if index < len(self._on_host):
            pieces = self._on_host[index]
            self._copy(zip(pieces, _split_like(pieces, x_TD), strict=True))

    def take(self, index: int) -> torch.Tensor:
        """Give the input of a layer back, after those above; it is held no longer."""
        self._wait()
        x_TD = self._held.pop(index)
        if 0 < index <= len(self._on_host):
            pieces = self._on_host[index - 1]
            below_TD = self._held[index - 1] = torch.empty_like(x_TD)
            self._copy(zip(_split_like(pieces, below_TD), pieces, strict=True))
        return x_TD

    def close(self) -> None:
        """Let the memory of inputs be had again, wherever the walk has ended: out of memory, it ends half way."""
        self._wait()

    def _copy(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy (to, from) after all that has been asked for, while the device goes on."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for there, here in pairs:
                there.copy_(here, non_blocking=True)

    def _wait(self) -> None:
        """Let what is asked for from now on come after the copies."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


def _split_like(pieces: list[torch.Tensor], x_TD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    parts: tuple[torch.Tensor, ...] = x_TD.split([len(piece) for piece in pieces])
    return parts
