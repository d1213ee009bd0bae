"""That the benchmark of kernels runs: GPU time is too dear to find a slip there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.on import DEVICE

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_case_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_kernels

    found: dict[str, object] = {}
    gpu_kernels.measure(gpu_kernels.tiny(str(DEVICE)), found.update)
    rows = found["kernels"]
    assert isinstance(rows, dict)
    assert len(rows) >= 29
    assert not {name: row for name, row in rows.items() if not row.get("ms")}
