from __future__ import annotations

import os
from pathlib import Path

import pytest

from fam_engine.model.cpu_products import keep_bits


def cpuinfo(vendor: str, flags: str) -> str:
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags} sse2\n"
    return f"{one}\n{one}"


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", {}),
        ("GenuineIntel", "avx2", {"MKL_CBWR": "AVX2,STRICT"}),
        ("GenuineIntel", "avx2 avx512f", {"MKL_CBWR": "AVX512,STRICT"}),
        (
            "GenuineIntel",
            "avx2 avx512f avx512_bf16 amx_bf16 amx_tile",
            {"MKL_CBWR": "AVX512,STRICT", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
        ),
    ],
)
def test_intel_s_processors_are_told(vendor: str, flags: str, expected: dict[str, str]) -> None:
    environment: dict[str, str] = {}
    keep_bits(cpuinfo(vendor, flags), environment)
    assert environment == expected


def test_what_the_user_set_stays() -> None:
    environment = {"MKL_CBWR": "AUTO"}
    keep_bits(cpuinfo("GenuineIntel", "avx2 amx_tile"), environment)
    assert environment["MKL_CBWR"] == "AUTO"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what processor it is")
def test_this_process_was_told() -> None:
    wanted: dict[str, str] = {}
    keep_bits(Path("/proc/cpuinfo").read_text(), wanted)
    assert {name: os.environ.get(name) for name in wanted} == wanted
