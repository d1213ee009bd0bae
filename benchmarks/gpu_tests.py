"""The tests that a GPU alone can run, each file in a process of its own, several at a time.

    python benchmarks/gpu_tests.py --out tests.json

In: nothing. Out: what passed and failed by file, as JSON, after every file. A process a file, because a kernel that
reads where it may not spoils all that comes after it in its process; several at a time, because most of the time goes
into compiling kernels. `compute-sanitizer`, where there is one, watches every kernel run once on tiny shapes meanwhile,
torch's caching allocator off, since inside one of its large blocks no access is out of bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MOST_SECONDS = 190  # of a file, and of the sanitizer
_COUNTED = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed)")


def test_files() -> list[str]:
    """Give the tests for GPUs and those of every Triton kernel, which then run on the GPU; large files first."""
    kernels = (ROOT / "tests" / "kernels").glob("test_*_triton.py")
    files = [*(ROOT / "tests" / "gpu").glob("test_*.py"), *kernels]
    files.sort(key=lambda file: -file.stat().st_size)
    return [str(file.relative_to(ROOT)) for file in files]


def run_file(name: str) -> dict[str, Any]:
    """Run one file of tests."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-W", "default", name]  # what that machine's libraries warn of fails nothing here
    found = run(command, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    counts = {what: int(count) for count, what in _COUNTED.findall(found["last_line"])}
    failures = [line for line in found["output"] if line.startswith(("FAILED", "ERROR"))]
    is_whole = found["exit_code"] in (0, 1) and not found["timed_out"]
    details = {} if found["exit_code"] == 0 else {"output": found["output"][-300:]}
    return {
        **counts,
        "seconds": found["seconds"],
        "exit_code": found["exit_code"],
        "is_whole": is_whole,
        "failures": failures,
        **details,
    }


def run_sanitizer(device: str) -> dict[str, Any]:
    """Let `compute-sanitizer` watch every kernel once."""
    tool = find_sanitizer()
    if tool is None:
        return {"found": "absent"}
    script = ROOT / "benchmarks" / "gpu_kernels.py"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", "--print-limit", "20"]
    command += [sys.executable, str(script), "--tiny", "--once", "--device", device]
    found = run(command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    verdict = {0: "no error", 9: "errors"}.get(found["exit_code"], "did not run to its end")
    told = [line for line in found["output"] if "========" in line or "Error" in line]
    return {
        "found": verdict,
        "tool": tool,
        "seconds": found["seconds"],
        "kernels": sum("=====" not in line for line in found["output"]),
        "output": told[-40:],
    }


def find_sanitizer() -> str | None:
    """Look on PATH, in CUDA's folder and among pip's packages."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    homes += [str(Path(folder) / "nvidia" / "cu13") for folder in sys.path]
    folders = [f"{home}/{part}" for home in homes if home for part in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *folders]))


def run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command, at most MOST_SECONDS long, and give how it went."""
    start = time.perf_counter()
    # Files side by side must not each start a thread a core.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **environment}
    timed_out = False
    # A file, not a pipe: a process that outlives the one it was started by would keep it open.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            process.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.kill()
            process.wait()
        file.seek(0)
        output = file.read()
    lines = output.splitlines()
    return {
        "seconds": time.perf_counter() - start,
        "exit_code": process.returncode,
        "timed_out": timed_out,
        "last_line": lines[-1] if lines else "",
        "output": lines,
    }


def main() -> int:
    """Run everything; give 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--files", nargs="*", default=test_files())
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    options = parser.parse_args()
    answer: dict[str, Any] = {"files": {}, "sanitizer": {"found": "not finished"}}
    with ThreadPoolExecutor(options.processes) as pool:
        jobs = {pool.submit(run_sanitizer, options.device): ""}
        jobs |= {pool.submit(run_file, name): name for name in options.files}
        for job in as_completed(jobs):
            name, found = jobs[job], job.result()
            answer |= {"files": answer["files"] | {name: found}} if name else {"sanitizer": found}
            options.out.write_text(json.dumps(answer, indent=1) + "\n")
            print(f"{name or 'compute-sanitizer'}: {_said(found)}", flush=True)
    good = all(file["exit_code"] == 0 for file in answer["files"].values())
    return int(not good or answer["sanitizer"]["found"] == "errors")


def _said(found: dict[str, Any]) -> str:
    counts = [f"{found[what]} {what}" for what in ("passed", "failed", "skipped") if what in found]
    if "found" in found:
        counts.append(found["found"])
    elif not found["is_whole"]:
        counts.append("did not run to its end")
    return ", ".join([*counts, f"{found.get('seconds', 0):.0f} s"])


if __name__ == "__main__":
    sys.exit(main())
