"""Memory that ran out, as one kind of error: `torch.OutOfMemoryError`.

In: whatever an allocation raises. Out: torch's class, which jobs answer with smaller batches. Torch raises it itself
only where its own allocator of the device finds nothing; what the driver lacks (a kernel to load, a graph, page-locked
memory), what cuBLAS lacks for a handle, and what the host's allocators lack come as a bare `RuntimeError` or a
`MemoryError`. They are told by their texts, as nothing else tells them apart; what is not known to be about memory
stays what it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import torch

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


def _is_about_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(saying in str(error) for saying in _SAYINGS)
