"""The most bytes of tensors that live at once while something is computed, on any device, `meta` too.

Every operation of torch is seen, and every storage it makes is followed to its end. Not seen: what libraries allocate
inside one operation, and what an allocator rounds up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Follows storages made inside a `with`; those of arguments from outside count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operation gives
        del types
        self._meet((args, kwargs), counts=False)
        result = func(*args, **(kwargs or {}))
        self._meet(result, counts=True)
        self.peak = max(self.peak, self._now)
        return result

    def _meet(self, tree: object, *, counts: bool) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in self._known:
                    self._follow(storage, storage.nbytes() if counts else 0)

    def _follow(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        key = id(storage)

        def end(_: object) -> None:
            del self._known[key]
            self._now -= num_bytes

        self._now += num_bytes
        self._known[key] = weakref.ref(storage, end)
