"""All that only a GPU can show, as one JSON file: tests first, then kernels, throughput and the probe.

    python benchmarks/gpu_check.py --out results.json

Runs without the development environment: what the machine lacks comes from the bundle of `make gpu-wheels`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_tests() -> dict[str, Any]:
    """Run the tests for GPUs and those of every Triton kernel, which then run on the GPU."""
    kernels = sorted(str(path) for path in (ROOT / "tests" / "kernels").glob("test_*_triton.py"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/gpu",
        *kernels,
    ]
    start = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "exit_code": run.returncode,
        "seconds": time.perf_counter() - start,
        "output": run.stdout.splitlines()[-15:],
    }


def run_throughput(out: Path, scale: float) -> dict[str, Any]:
    """Run G1, G8 and L8 beside transformers."""
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_score.py"), "--device", "cuda"]
    command += ["--out", str(out), "--scale", str(scale), "--tokens-per-batch", "16384"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        return {"exit_code": run.returncode, "output": run.stderr.splitlines()[-15:]}
    answer: dict[str, Any] = json.loads(out.read_text())
    return answer


def main() -> int:
    """Check everything and write the answer, even when a part fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=4.0)
    options = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        print("error[E_DEVICE]: no NVIDIA GPU that torch can use", file=sys.stderr)
        return 8
    from gpu_kernels import measure
    from gpu_probe import milliseconds, probe

    answer: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    parts = {
        "tests": run_tests,
        "kernels": lambda: measure(milliseconds),
        "throughput": lambda: run_throughput(options.out.with_suffix(".score.json"), options.scale),
        "probe": probe,
    }
    for name, part in parts.items():
        answer[name] = part()
        options.out.write_text(json.dumps(answer, indent=1) + "\n")
        print(f"{name}: done", flush=True)
    return int(answer["tests"]["exit_code"])


if __name__ == "__main__":
    sys.exit(main())
