"""Times of calls on a device, and the device's own rates, which are the measure of everything else.

In: a call, a device. Out: milliseconds; bytes a second of a copy, operations a second of a product. On CUDA by events
after warm-up: work there is asynchronous, a clock of the host would see its launch. Before every call a buffer several
times as large as the card's cache is read, so that the call finds nothing there (written, it would have to carry that
back to memory), and as often as keeps the card busy while the call is launched: else a call of a dozen small kernels
would take as long as the host takes to launch them. Data are random: zeros draw less power and look faster.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

# An H200 has 60 MB of second-level cache, a B200 126.
CACHE_BYTES = 512 << 20
# A reading of it takes no card less than this, s: 8 TB/s.
_READING_SECONDS = CACHE_BYTES / 8e12


def milliseconds(call: Callable[[], object], device: str = "cuda") -> float:
    """Give the median time of 20 calls after three others; on a CPU, where only this code is tried, of one."""
    if device == "cpu":
        return _on_cpu(call)
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        launching = time.perf_counter() - begin
    cache = torch.zeros(CACHE_BYTES // 4, device=device)
    # Twice what the last launch took: the host is not as fast every time.
    num_readings = 2 + math.ceil(2 * launching / _READING_SECONDS)
    return statistics.median(_on_cuda(call, cache, num_readings) for _ in range(20))


def _on_cuda(call: Callable[[], object], cache: torch.Tensor, num_readings: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(num_readings):
        cache.sum()
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def _on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def copy_rate(device: str) -> float:
    """Give the bytes a second of a copy within the device, read and written."""
    # 1 GiB on a GPU: many times its cache.
    source = torch.randn(1 << 28 if device == "cuda" else 1 << 22, device=device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / milliseconds(partial(target.copy_, source), device) * 1e3
    del source, target
    torch.cuda.empty_cache()  # for the processes beside this one
    return rate


def matrix_rate(device: str) -> float:
    """Give the operations a second of a product of two square matrices in bf16."""
    size = 8192 if device == "cuda" else 256
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    rate = 2 * size**3 / milliseconds(partial(torch.matmul, a, b), device) * 1e3
    del a, b
    torch.cuda.empty_cache()  # for the processes beside this one
    return rate


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def forget_peak(device: str) -> None:
    """Let the most memory held be counted from now on."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
