"""The streams of the simulated GPU: what a real one would still be doing, and what makes the host wait for it.

Operations are done at once, but for two kinds whose time matters to the host. A copy from page-locked memory may be
made late: who writes to that memory before waiting is told so. A copy to page-locked memory has come only once the host
has waited: until then it holds nonsense.

Other streams than the one that computes can copy to and from the host, and do so as late as they may: when the one that
computes waits for them. They must have waited for all that it had been asked for, and what they copy must not be given
back before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

# Who is on its way, oldest first; each is called when the host has waited for it.
_on_its_way: list[Callable[[], None]] = []
_num_ended = 0
_sync_debug_mode = "default"
# Memory by its address, held so that the address is nobody else's.
_pinned: dict[int, torch.UntypedStorage] = {}
is_capturing = False
# What the stream that computes has been asked for.
num_operations = 0


def wait(upto: int | None = None) -> None:
    """Let the host wait for what was asked for before, or for the first `upto` requests since the start."""
    global _num_ended
    count = len(_on_its_way) if upto is None else max(0, upto - _num_ended)
    ended, _on_its_way[:] = _on_its_way[:count], _on_its_way[count:]
    _num_ended += len(ended)
    with torch.inference_mode():  # in which any tensor may be written to
        for end in ended:
            end()


def host_waits(why: str) -> None:
    """Note that an operation makes the host wait.

    Raises:
        RuntimeError: It must not now, as torch says it.
    """
    if is_capturing:
        raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
    if _sync_debug_mode == "error":
        raise RuntimeError(f"called a synchronizing CUDA operation: {why}")
    wait()


def copy_in(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy page-locked memory to the GPU while the host goes on."""
    target.copy_(source)
    as_sent = source.clone()

    def check() -> None:
        if not torch.equal(_bytes(source), _bytes(as_sent)):
            raise RuntimeError("page-locked memory was written to before its copy had ended")

    _on_its_way.append(check)


def copy_out(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy to page-locked memory while the host goes on."""
    values = source.clone()
    spoil(target)
    _on_its_way.append(lambda: target.copy_(values))


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def spoil(x: torch.Tensor) -> None:
    """Fill with what no program should read."""
    x.fill_(torch.nan if x.is_floating_point() else x.dtype == torch.bool or 77)


def pin(x: torch.Tensor) -> torch.Tensor:
    """Note that the memory of a tensor is page-locked."""
    for place, storage in list(_pinned.items()):
        if torch._C._storage_Use_Count(storage._cdata) <= 1:
            del _pinned[place]
    storage = x.untyped_storage()
    _pinned[storage.data_ptr()] = storage
    return x


def is_pinned(x: torch.Tensor) -> bool:
    """Whether the memory of a tensor is page-locked."""
    return x.untyped_storage().data_ptr() in _pinned


@dataclass(frozen=True)
class _LateCopy:
    """A copy between the memory of two tensors, one of which is the GPU's."""

    source: torch.Tensor
    target: torch.Tensor


_streams: list[Stream] = []


class Stream:
    """`torch.cuda.Stream`: the one that computes, or another that copies."""

    def __init__(self, device: object = None) -> None:
        self._late: list[_LateCopy] = []
        self._num_seen = -1
        _streams.append(self)

    def wait_stream(self, other: Stream) -> None:
        if self is MAIN:
            other.run()
        else:
            assert other is MAIN
            self._num_seen = num_operations

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy later."""
        if self._num_seen != num_operations:
            raise RuntimeError("a stream copies what another may not have computed yet")
        # Tensors of its own, so that others who hold the memory can be counted.
        self._late.append(_LateCopy(source.detach(), target.detach()))

    def run(self) -> None:
        """Do all copies that are late."""
        try:
            with torch.inference_mode():
                for late in self._late:
                    for x in (late.source, late.target):
                        self._check_held(x)
                    late.target.copy_(late.source)
        finally:
            self._late.clear()

    def _check_held(self, x: torch.Tensor) -> None:
        """Refuse memory that nobody holds but copies that are late."""
        storage = x.untyped_storage()  # which holds it once more
        of_copies = sum(
            y.untyped_storage().data_ptr() == storage.data_ptr()
            for late in self._late
            for y in (late.source, late.target)
        )
        if torch._C._storage_Use_Count(storage._cdata) <= of_copies + 1:
            raise RuntimeError("memory was given back while another stream copies")


def synchronize() -> None:
    """`torch.cuda.synchronize`."""
    wait()
    for each in _streams:
        each.run()


MAIN = Stream()
_current = MAIN


def current_stream(device: object = None) -> Stream:
    return _current


def other_stream() -> Stream | None:
    """Give the stream operations go to, unless it is the one that computes."""
    return None if _current is MAIN else _current


@contextlib.contextmanager
def stream(chosen: Stream | None) -> Iterator[None]:
    """`torch.cuda.stream`."""
    global _current
    before, _current = _current, chosen or _current
    try:
        yield
    finally:
        _current = before


class Event:
    """`torch.cuda.Event` of the stream that computes."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        self._upto = 0

    def record(self, stream: object = None) -> None:
        self._upto = _num_ended + len(_on_its_way)

    def synchronize(self) -> None:
        wait(self._upto)

    def query(self) -> bool:
        return self._upto <= _num_ended

    def elapsed_time(self, end: Event) -> float:
        return 1.0


def set_sync_debug_mode(mode: str | int) -> None:
    global _sync_debug_mode
    _sync_debug_mode = {0: "default", 1: "warn", 2: "error"}.get(mode, mode)  # type: ignore[arg-type, assignment]
