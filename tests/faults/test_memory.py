"""Memory does not grow with the input: a gigabyte takes what 100 MB take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_memory.py"
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc"),
]


def test_a_gigabyte_takes_what_100_megabytes_take(tmp_path: Path) -> None:
    out = tmp_path / "peaks.json"
    sizes = ("--megabytes", "100", "1000")
    subprocess.run([sys.executable, BENCHMARK, *sizes, "--out", out], check=True, timeout=900)
    peaks = json.loads(out.read_text())["peak_megabytes_by_input_megabytes"]
    small, large = peaks["100"], peaks["1000"]
    assert large["records"] > 9 * small["records"] > 9 * 10_000
    # Caches are bounded; the plan, the table's columns, summary and report are of all records.
    for phase, bytes_a_record in (("read", 0), ("scored", 500), ("written", 1500)):
        growth = 10**6 * (large[phase] - small[phase])
        assert growth <= 64 * 10**6 + bytes_a_record * (large["records"] - small["records"]), peaks
