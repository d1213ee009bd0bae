"""What the machine has: processor, GPU and driver, memory, disk.

In: what the system and torch say. Out: checks. A GPU that the driver knows and torch cannot use is a warning, as the
commands then compute on the CPU; a failure where `--device cuda` was asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from fam_engine.config import Device
from fam_engine.errors import DeviceError
from fam_engine.jobs.bench.machine import device_name
from fam_engine.jobs.doctor.checks import Check
from fam_engine.model.devices import check_capability, choose_device, has_native_bf16
from fam_engine.model.memory import free_bytes

_CPU: Final = torch.device("cpu")
_GIB: Final = 1 << 30
_LITTLE_MEMORY: Final = 2 * _GIB
_LITTLE_DISK: Final = 2 * _GIB
_SECONDS_TO_ASK: Final = 10


def check_processor() -> Iterator[Check]:
    """Look at the CPU."""
    words = _flags()
    found = f"{device_name('cpu')}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    yield Check("cpu", "processor", "ok", found)
    if has_native_bf16(_CPU):
        yield Check("cpu", "bf16", "ok", "multiplied in hardware, the default compute dtype")
    else:
        yield Check(
            "cpu", "bf16", "ok", "not multiplied in hardware: fp32 is the default compute dtype"
        )
    if "avx512f" in words or "avx2" in words:
        names = [name for name in ("avx2", "avx512f", "avx512_bf16") if name in words]
        yield Check("cpu", "vectors", "ok", ", ".join(names))
    if "amx_tile" in words:
        isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
        if isa == "AVX512_CORE_BF16":
            yield Check("cpu", "amx", "ok", "there, left unused: its bits depend on the batch")
        else:
            found = f"in use, as ONEDNN_MAX_CPU_ISA is `{isa}`: scores depend on the batch"
            yield Check("cpu", "amx", "warn", found, "unset ONEDNN_MAX_CPU_ISA")


def check_gpu(device: Device) -> tuple[list[Check], DeviceError | None]:
    """Look at the GPU.

    Args:
        device: What is asked for.

    Returns:
        What was found; the refusal a command would give, where it would.
    """
    driver = _driver()
    try:
        place = choose_device("auto" if device == "cpu" else device)
    except DeviceError as error:
        found = f"{error.message}; {_why_not(driver)}"
        return [Check("gpu", "device", "fail", found, error.hint or "")], error
    if place.type == "cuda":
        return list(_gpus(driver)), None
    found = f"none that torch can use, commands compute on the CPU; {_why_not(driver)}"
    if driver is None:
        return [Check("gpu", "device", "ok", found)], None
    remedy = "install torch for a CUDA that this driver has (pytorch.org), or update the driver"
    return [Check("gpu", "device", "warn", found, remedy)], None


def _gpus(driver: str | None) -> Iterator[Check]:
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        free, total = torch.cuda.mem_get_info(index)
        found = (
            f"{properties.name}, compute capability {capability}, {free / _GIB:.1f} of "
            f"{total / _GIB:.1f} GiB free"
        )
        try:
            check_capability((properties.major, properties.minor))
            yield Check("gpu", f"device {index}", "ok", found)
        except DeviceError as error:
            yield Check("gpu", f"device {index}", "fail", error.message, error.hint or "")
    yield Check(
        "gpu", "driver", "ok", f"{driver or 'unknown'}, torch for CUDA {torch.version.cuda}"
    )


def _why_not(driver: str | None) -> str:
    if driver is None:
        return "no NVIDIA driver found"
    built = torch.version.cuda
    return f"driver {driver}, torch {'for CUDA ' + built if built else 'built without CUDA'}"


def _driver() -> str | None:
    """Give the NVIDIA driver's version, None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS_TO_ASK
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = found.stdout.split("\n") if found.returncode == 0 else []
    return lines[0].strip() or None if lines else None


def check_space() -> Iterator[Check]:
    """Look at free memory and disk."""
    memory = free_bytes(_CPU)
    found = f"{memory / _GIB:.1f} GiB free"
    if memory < _LITTLE_MEMORY:
        yield Check("space", "memory", "warn", found, "end other programs, or take a small model")
    else:
        yield Check("space", "memory", "ok", found)
    here = Path.cwd()
    disk = shutil.disk_usage(here).free
    found = f"{disk / _GIB:.1f} GiB free in {here}"
    if disk < _LITTLE_DISK:
        yield Check("space", "disk", "warn", found, "give an --out on a disk with more")
    else:
        yield Check("space", "disk", "ok", found)


def _flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    return set(info.read_text().partition("\n\n")[0].split()) if info.exists() else set()
