"""Memory that ran out, as one kind of error: `torch.OutOfMemoryError`.

In: whatever an allocation raises. Out: torch's class, which jobs answer with smaller batches. Torch raises it itself
only where its own allocator of the device finds nothing; what the driver lacks (a kernel to load, a graph, page-locked
memory), what cuBLAS lacks for a handle, and what the host's allocators lack come as a bare `RuntimeError` or a
`MemoryError`. They are told by their texts, as nothing else tells them apart; what is not known to be about memory
stays what it is. Where every job needs the same answer it is here: entries in halves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import torch

from fam_engine.data.packing import Entries

_T = TypeVar("_T")

# What such errors say: the driver, through torch or Triton; a library of NVIDIA; torch's allocator of the host.
_SAYINGS: Final = ("out of memory", "_STATUS_ALLOC_FAILED", "can't allocate memory")


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Let every error that says that memory ran out be torch's own; others pass as they are.

    Raises:
        torch.OutOfMemoryError: Memory ran out, the device's or the host's.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, MemoryError) as error:
        if _is_about_memory(error):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


def in_halves(compute: Callable[[Entries], _T], entries: Entries) -> list[_T]:
    """Compute some entries, in halves and halves of those where memory runs out.

    Args:
        compute: Entries -> what is found, which nothing on the device may hang on while the next are computed.
        entries: At least one.

    Returns:
        What was found of each part, in order.

    Raises:
        torch.OutOfMemoryError: An entry does not fit in memory even alone.
    """
    try:
        with memory_errors():
            return [compute(entries)]
    except torch.OutOfMemoryError:
        if len(entries) == 1:
            raise
    # Out here, where no traceback keeps the tensors alive.
    torch.cuda.empty_cache()
    half = len(entries) // 2
    return in_halves(compute, entries[:half]) + in_halves(compute, entries[half:])


def _is_about_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(saying in str(error) for saying in _SAYINGS)
