"""The simulated GPU, as `torch.cuda` shows it: an H100 that is always there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import torch

from tests.simulated import graphs, stream
from tests.simulated.tensors import OnCuda

NAME: Final = "simulated H100"
CAPABILITY: Final = (9, 0)
MEMORY_BYTES: Final = 80 * 10**9


def _properties(device: object = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=NAME,
        total_memory=MEMORY_BYTES,
        multi_processor_count=132,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        L2_cache_size=50 << 20,
    )


def _gives(value: Any) -> Callable[..., Any]:  # noqa: ANN401
    return lambda *_, **__: value


_SHOWN: Final[dict[str, Any]] = {
    "_lazy_init": _gives(None),
    "is_available": _gives(True),
    "is_initialized": _gives(True),
    "device_count": _gives(1),
    "current_device": _gives(0),
    "set_device": _gives(None),
    "get_device_name": _gives(NAME),
    "get_device_capability": _gives(CAPABILITY),
    "get_device_properties": _properties,
    "is_bf16_supported": _gives(True),
    "mem_get_info": _gives((MEMORY_BYTES, MEMORY_BYTES)),
    "memory_allocated": _gives(0),
    "memory_reserved": _gives(0),
    "max_memory_allocated": _gives(0),
    "max_memory_reserved": _gives(0),
    "reset_peak_memory_stats": _gives(None),
    "set_per_process_memory_fraction": _gives(None),
    "empty_cache": _gives(None),
    "synchronize": lambda *_: stream.synchronize(),
    "Event": stream.Event,
    "Stream": stream.Stream,
    "stream": stream.stream,
    "current_stream": stream.current_stream,
    "set_sync_debug_mode": stream.set_sync_debug_mode,
    "CUDAGraph": graphs.CUDAGraph,
    "graph": graphs.graph,
    "graph_pool_handle": _gives((0, 1)),
    "is_current_stream_capturing": lambda: graphs.capturing() is not None,
}


def is_simulated() -> bool:
    """Whether the GPU is this one, which is thousands of times slower than a real one."""
    return torch.cuda.is_available() and torch.cuda.get_device_name() == NAME


def install() -> None:
    """Show it to this process, and to all its threads, from now on."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    for name, value in _SHOWN.items():
        setattr(torch.cuda, name, value)
    from tests.simulated import interpreter  # late: Triton asks once whether to interpret

    interpreter.install()
    OnCuda().__enter__()
    run = threading.Thread.run

    def run_on_cuda(self: threading.Thread) -> None:
        with OnCuda():
            run(self)

    threading.Thread.run = run_on_cuda  # type: ignore[method-assign]
