"""What a measurement was made on.

In: a device's name. Out: machine, versions, commit, date and load, as values for JSON. Figures of different machines
must never be compared by accident, so `what_differs` says what sets two apart.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fam_engine
from fam_engine.version import installed_version

_PACKAGES = ("torch", "transformers", "tokenizers", "bitsandbytes", "triton", "fam-engine")


def describe_machine(
    device: str, threads: int | None, packages: Sequence[str] = ()
) -> dict[str, Any]:
    """Describe this machine and the versions in use.

    Args:
        device: `cpu` or `cuda`.
        threads: Threads the work may use; None: as many as it likes.
        packages: Further packages whose versions matter, peers for instance.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg(),
        "versions": {name: installed_version(name) for name in (*_PACKAGES, *packages)},
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def what_differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Say what sets two machines apart, such as `device: A, B`; empty if nothing does."""
    pairs = {name: (one.get(name), other.get(name)) for name in ("device", "cores", "threads")}
    return [f"{name}: {a}, {b}" for name, (a, b) in pairs.items() if a != b]


def _commit() -> str | None:
    """Give the commit of the checkout this package runs from, marked where files differ from it.

    None where it is installed: an environment may lie in a repository that is not ours.
    """
    package = Path(fam_engine.__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() / "engine" / "fam_engine" != package:
        return None
    return _git(package, "describe", "--always", "--dirty")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def device_name(device: str) -> str:
    """Give the name of the GPU or the processor."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
