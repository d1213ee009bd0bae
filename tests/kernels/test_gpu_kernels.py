"""That the benchmark of kernels runs: GPU time is too dear to find a slip there."""

from __future__ import annotations

from benchmarks import gpu_kernels

from tests.kernels.on import DEVICE


def test_every_case_runs() -> None:
    names = []
    for case in gpu_kernels.cases(gpu_kernels.tiny(str(DEVICE))):
        case.call()
        assert case.num_bytes > 0
        names.append(case.name)
    assert len(set(names)) == len(names) >= 25
