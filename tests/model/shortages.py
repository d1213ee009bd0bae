"""What allocations raise when memory runs out, as torch, Triton and numpy word it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

# Older torch has no class of its own for errors of a device.
_OfDevice: type[RuntimeError] = getattr(torch, "AcceleratorError", RuntimeError)

# Torch's allocator of a GPU; the driver, asked by torch (page-locked memory, a graph) or by Triton for a kernel; cuBLAS
# for its handle; torch's allocator of the host, and numpy's.
SHORTAGES: tuple[Callable[[], Exception], ...] = (
    partial(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB."),
    partial(_OfDevice, "CUDA error: out of memory"),
    partial(RuntimeError, "Triton Error [CUDA]: out of memory"),
    partial(
        RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    partial(RuntimeError, "CUDA driver error: out of memory"),
    partial(
        RuntimeError,
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)",
    ),
    partial(MemoryError, "Unable to allocate 8.00 TiB for an array with shape (1099511627776,)"),
)
OTHERS: tuple[Callable[[], Exception], ...] = (
    partial(_OfDevice, "CUDA error: an illegal memory access was encountered"),
    partial(RuntimeError, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    # Of a kernel that no memory lets run.
    partial(
        RuntimeError, "out of resource: shared memory, Required: 331776, Hardware limit: 232448"
    ),
    partial(ValueError, "out of memory"),
)
