"""Matrix products whose bits do not depend on their height: what Intel's processors must be told for that.

In: what the processor says of itself. Out: environment variables that MKL and oneDNN read at their first product. Left
alone, both choose the order of sums over K by the number of rows, on Intel's processors only: MKL in fp32 (seen from
K = 896 on), oneDNN with AMX tiles in bf16. MKL's strict reproducibility costs nothing measurable; without AMX bf16
products are 2 to 6 times slower (Xeon with AMX, two cores), which is the price of scores that depend on the record
alone. What the user has set stays.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def keep_bits(cpuinfo: str, environment: MutableMapping[str, str]) -> None:
    """Set what makes a row's bits its own.

    Args:
        cpuinfo: `/proc/cpuinfo`, or its first processor.
        environment: Where to set it.
    """
    words = set(cpuinfo.partition("\n\n")[0].split())
    if "GenuineIntel" not in words:
        return
    branch = "AVX512" if "avx512f" in words else "AVX2"
    environment.setdefault("MKL_CBWR", f"{branch},STRICT")
    if "amx_tile" in words:
        environment.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


def keep_bits_here() -> None:
    """Do so for this process; once torch has multiplied matrices it is too late."""
    if _CPUINFO.exists():
        keep_bits(_CPUINFO.read_text(), os.environ)
