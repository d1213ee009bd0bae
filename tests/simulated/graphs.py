"""CUDA graphs of the simulated GPU: a list of what was asked for while it was captured, done again at each replay.

As on a real one, capturing notes and does nothing: what it wrote to memory of before is put back. Arguments are noted
as they are, so a number that the host had computed stays what it was. Memory that came into being while capturing is
the graph's own: at the end of a replay it is filled with nonsense, as other graphs may use it. Who replays a graph that
reads memory given back since is told so.

Graphs captured on one stream share the memory that cuBLAS works in, and the first that goes gives it back, whoever
replays later (pytorch/pytorch issue 193402).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.simulated import stream as streams

_capturing: CUDAGraph | None = None


def capturing() -> CUDAGraph | None:
    """Return the graph that is being captured."""
    return _capturing


class _Memory:
    """Memory of before the capture that a graph uses.

    Args:
        x: A tensor in it.
    """

    def __init__(self, x: torch.Tensor) -> None:
        self._storage = x.untyped_storage()
        self._before = self._bytes().clone()
        self.num_aliases = 0

    def _bytes(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8).set_(self._storage)

    def put_back(self) -> None:
        """Undo what was written while capturing."""
        self._bytes().copy_(self._before)
        del self._before

    def is_given_back(self) -> bool:
        """Whether nobody but graphs knows it any more."""
        return torch._C._storage_Use_Count(self._storage._cdata) <= self.num_aliases + 1


class _Workspace:
    """Memory that cuBLAS works in, of all graphs captured on one stream."""

    is_given_back = False


# By the stream; of None, which torch has for all who name none.
_workspaces: dict[object, _Workspace] = {}


class CUDAGraph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self._stream: object = None
        self._workspace = _Workspace()
        self._steps: list[Callable[[], None]] = []
        self._own: dict[int, torch.Tensor] = {}
        self._given: dict[int, _Memory] = {}

    def run(self, do: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Do something and note it."""
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor):
                self._meet(x)
        result = do(*args, **kwargs)
        results = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        for x in results:
            if _place(x) not in self._given:
                self._own.setdefault(_place(x), x)
        args, kwargs, olds = tree_map_only(torch.Tensor, self._alias, (args, kwargs, results))
        self._steps.append(lambda: _again(do, args, kwargs, olds))
        return result

    def _meet(self, x: torch.Tensor) -> None:
        if _place(x) not in self._own and _place(x) not in self._given:
            self._given[_place(x)] = _Memory(x)

    def _alias(self, x: torch.Tensor) -> torch.Tensor:
        """Give the same memory in a tensor of the graph's."""
        if _place(x) in self._given:
            self._given[_place(x)].num_aliases += 1
        # No view, which would hold what it is a view of.
        alias = torch.empty(0, dtype=x.dtype)
        return alias.set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())

    def begin_capture(self, on: object) -> None:
        """Take the memory of a stream's graphs."""
        self._stream = on
        self._workspace = _workspaces.setdefault(on, _Workspace())

    def __del__(self) -> None:
        self._workspace.is_given_back = True
        if _workspaces.get(self._stream) is self._workspace:
            del _workspaces[self._stream]

    def end_capture(self) -> None:
        """Put back what was there before."""
        for memory in self._given.values():
            memory.put_back()

    def replay(self) -> None:
        """Do all of it again."""
        if any(memory.is_given_back() for memory in self._given.values()):
            raise RuntimeError("a graph reads memory that was given back")
        if self._workspace.is_given_back:
            raise RuntimeError(
                "a graph multiplies in memory that another one of its stream gave back"
            )
        for step in self._steps:
            step()
        for x in self._own.values():
            streams.spoil(x)


def _place(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _again(do: Callable[..., Any], args: Any, kwargs: Any, olds: Sequence[torch.Tensor]) -> None:  # noqa: ANN401
    news = [x for x in tree_leaves(do(*args, **kwargs)) if isinstance(x, torch.Tensor)]
    for old, new in zip(olds, news, strict=True):
        if _place(old) != _place(new):
            old.copy_(new)


@contextlib.contextmanager
def graph(captured: CUDAGraph, pool: object = None, stream: object = None) -> Iterator[None]:
    """`torch.cuda.graph`."""
    global _capturing
    streams.wait()
    captured.begin_capture(stream)
    _capturing, streams.is_capturing = captured, True
    try:
        yield
    finally:
        _capturing, streams.is_capturing = None, False
        captured.end_capture()
