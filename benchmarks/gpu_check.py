"""All that only a GPU can show, as one JSON file and one table: tests, kernels, scoring, decoding, training, questions.

    python benchmarks/gpu_check.py --out DIR                              # fam-engine alone, within ten minutes
    python benchmarks/gpu_check.py --out DIR --parts scoring decoding --peers transformers
    python benchmarks/gpu_check.py --out DIR --parts training --peers peft liger

Runs without the development environment: what the machine lacks comes from the bundles of `make gpu-wheels`. Time on
such a machine is dear, so every part is a process of its own with a limit of its own, and what it has found by then is
kept: a failure, a crash or a part that takes too long costs no other part its result. A part for which no time is left
says so. DIR then holds `gpu_check.json` and `gpu_check.md`, written after every job, and what the jobs printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_table import markdown

ROOT = Path(__file__).parents[1]
# A step of work that is not worth beginning with less time than this, s.
LEAST_SECONDS = 10
# Nothing is to be asked of a hub, and nobody told.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_COMPILE_LOCATION": f"{tempfile.gettempdir()}/unsloth_compiled",
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8:replace",
}
# Models in memory are written and read faster; the three of them take so much.
SHARED_MEMORY, MODEL_BYTES = Path("/dev/shm"), 12 << 30
SMI_FIELDS = (
    "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.total,memory.used"
)
# Which parts load models.
MODEL_PARTS = {"scoring", "decoding", "training", "steps", "longest", "curves"}
PEERS_OF = {
    "scoring": {"transformers", "transformers-bf16", "unsloth"},
    "decoding": {
        "with-adapter",
        "transformers",
        "transformers-static",
        "unsloth",
        "unsloth-graphs",
    },
    "training": {"peft", "liger", "trl", "unsloth", "unsloth-layer", "unsloth-none"},
}


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        part: What it belongs to.
        name: Of its result within the part; the part's name where it has one job only.
        command: Script and arguments, without `--out`.
        seconds: It may take.
    """

    part: str
    name: str
    command: tuple[str, ...]
    seconds: float


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Yield what to run, in this order: if time runs out, the last shapes are lost.

    Limits are about twice what an H100 needs, and within them the total decides. Measured there, s: tests 125, with the
    models written meanwhile, kernels 15 to 27; scoring, answering and training at 8B 30, 42, 76; questions 5. Expected:
    half to two thirds of that at 1B and 3B, where steps go 60; longest document 150, as
    attention over 98,304 tokens goes.
    """
    device = ("--device", options.device)
    is_tiny = options.device == "cpu"
    files = ("--files", "tests/gpu/test_cuda.py") if is_tiny else ()
    yield Job("tests", "tests", ("gpu_tests.py", *device, *files), 220)
    yield Job("kernels", "kernels", ("gpu_kernels.py", *device, *("--tiny",) * is_tiny), 90)
    for shape in options.shapes:
        yield from _jobs_of_shape(shape, options)
        if shape == options.shapes[0]:
            yield Job("probe", "probe", ("gpu_probe.py",), 30)
            yield Job("steps", shape, ("gpu_steps.py", *_which(shape, options)), 90)
            command = ("bench_train.py", *_which(shape, options), "--longest")
            yield Job("longest", shape, command, 300)
    if peers := _peers("training", options):
        # Two blocks a step: one alone would leave nothing to compare a peer with itself by.
        steps = ("4", "--budgets", "128") if is_tiny else ("200", "--budgets", "4096")
        shape = "1b" if "1b" in options.shapes else options.shapes[0]
        command = ("bench_train.py", *_which(shape, options), "--curve", *steps, *peers)
        yield Job("curves", shape, command, 300)


def _jobs_of_shape(shape: str, options: argparse.Namespace) -> Iterator[Job]:
    which, is_tiny = _which(shape, options), options.device == "cpu"
    # Starting and measuring peers takes longer; and a CPU, where only the scripts are tried, may be busy.
    longer = (2.5 if options.peers else 1.0) * (4 if is_tiny else 1)
    peers = {part: _peers(part, options) for part in PEERS_OF}
    size: tuple[str, ...] = ("--scale", "4", "--tokens-per-batch", "16384")
    size = ("--scale", "0.1", "--rounds", "1") if is_tiny else size
    yield Job("scoring", shape, ("bench_score.py", *which, *size, *peers["scoring"]), 100 * longer)
    size = ("--num-tokens", "8", "--rounds", "1") if is_tiny else ()
    command = ("bench_decode.py", *which, *size, *peers["decoding"])
    yield Job("decoding", shape, command, 90 * longer)
    # The last are lost first if time runs out.
    size = ("16384", "4096", "8192") if peers["training"] else ("2048", "4096", "16384", "8192")
    size = ("128", "--caps", "0", "--steps", "1") if is_tiny else size
    command = ("bench_train.py", *which, "--budgets", *size, *peers["training"])
    yield Job("training", shape, command, 450 if peers["training"] else 140 * longer)


def _which(shape: str, options: argparse.Namespace) -> tuple[str, ...]:
    return "--device", options.device, "--models", str(options.models), "--shape", shape


def _peers(part: str, options: argparse.Namespace) -> tuple[str, ...]:
    known = sorted(PEERS_OF[part] & set(options.peers))
    return ("--peers", *known) if known else ()


def run_job(job: Job, folder: Path, log: Path, seconds: float) -> dict[str, Any]:
    """Run a job; give its result, or as much of it as there is."""
    out = folder / f"{job.part}-{job.name}.json"
    script, *arguments = job.command
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--out", str(out)]
    start = time.perf_counter()
    with log.open("a+", encoding="utf-8", errors="replace") as file:
        file.write(f"\n--- {job.part} {job.name}\n")
        file.flush()
        begin = file.tell()
        # A session of its own: what it started ends with it.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **OFFLINE},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        file.seek(begin)
        printed = file.read()
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"exit_code": code, "timed_out": code is None, "seconds": seconds}
    if code != 0:
        found["output"] = printed.splitlines()[-20:]
    return found | {"result": _read(out)}


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(file: Path) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def environment(device: str) -> dict[str, Any]:
    """Say what this is measured on; the commit is the bundle's unless the package is this checkout's."""
    import fam_engine
    from fam_engine.jobs.bench.machine import describe_machine

    peers = ("peft", "accelerate", "trl", "liger-kernel", "unsloth")
    found = describe_machine(device, None, packages=peers)
    bundled = ROOT / "dist" / "gpu" / "commit.txt"
    is_ours = Path(fam_engine.__file__).resolve().parent == ROOT.resolve() / "engine" / "fam_engine"
    if bundled.exists() and not (is_ours and found["commit"]):
        found["commit"] = bundled.read_text().strip()
    return found | {"gpu": gpu_state()}


def gpu_state() -> dict[str, str]:
    """Ask nvidia-smi for driver, clocks, power; nothing where it is not there."""
    command = ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = told.stdout.splitlines()[0].split(", ")
    return dict(zip(SMI_FIELDS.split(","), values, strict=False))


def main() -> int:
    """Run the parts asked for; give 1 if one of them failed, 2 if there is none."""
    options = _options()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in (
        "gpu_check.json",
        "gpu_check.md",
    ):  # of an earlier run: not to be taken for this one's
        (options.out / name).unlink(missing_ok=True)
    if not any(job.part in options.parts for job in jobs(options)):
        asked = f"{' '.join(options.parts) or 'none'}, peers {' '.join(options.peers) or 'none'}"
        print(f"error: nothing to run with parts {asked}: curves need training's", file=sys.stderr)
        return 2
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("error[E_DEVICE]: no NVIDIA GPU that torch can use", file=sys.stderr)
        return 8
    end = time.monotonic() + options.seconds
    answer: dict[str, Any] = {"environment": environment(options.device), "parts": {}}
    with tempfile.TemporaryDirectory(dir=_roomy()) as folder:
        options.models = options.models or Path(folder)
        writing = _begin_models(options) if MODEL_PARTS & set(options.parts) else None
        for job in jobs(options):
            if job.part in options.parts:
                if writing is not None and job.part != "tests":  # nothing beside what is timed
                    writing.wait()
                found = _run_in_time(job, Path(folder), options.out, end - time.monotonic())
                answer["parts"].setdefault(job.part, {})[job.name] = found
                _write(options.out, answer)
                print(f"{job.part} {job.name}: {_said(found)}", flush=True)
    return int(
        any(job["exit_code"] != 0 for part in answer["parts"].values() for job in part.values())
    )


def _begin_models(options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Write the models while the tests compile; a shape that fails is written, and told of, by who asks for it."""
    script = ROOT / "benchmarks" / "random_models.py"
    command = [sys.executable, str(script), "--models", str(options.models)]
    command += ["--device", options.device, "--shapes", *options.shapes]
    with (options.out / "gpu_check.log").open("a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **OFFLINE}, stdout=log, stderr=log
        )


def _roomy() -> Path | None:
    """Give where temporary files go: into memory if the models fit there twice; None: as always."""
    try:
        is_roomy = shutil.disk_usage(SHARED_MEMORY).free > 2 * MODEL_BYTES
    except OSError:
        return None
    return SHARED_MEMORY if is_roomy else None


def _run_in_time(job: Job, folder: Path, out: Path, left: float) -> dict[str, Any]:
    if left < LEAST_SECONDS:
        return {"exit_code": None, "timed_out": True, "seconds": 0.0, "result": None, "output": []}
    found = run_job(job, folder, out / "gpu_check.log", min(job.seconds, left))
    return found | {"gpu": gpu_state()}


def _said(found: dict[str, Any]) -> str:
    if not found["seconds"]:
        return "no time left"
    how = "out of time" if found["timed_out"] else f"exit code {found['exit_code']}"
    return f"{how}, {found['seconds']:.0f} s"


def _write(folder: Path, answer: dict[str, Any]) -> None:
    (folder / "gpu_check.json").write_text(json.dumps(answer, indent=1) + "\n")
    (folder / "gpu_check.md").write_text(markdown(answer))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: try the scripts"
    )
    every = ["tests", "kernels", "scoring", "decoding", "training", "probe"]
    every += ["steps", "longest", "curves"]
    parser.add_argument("--parts", nargs="*", choices=every, default=every)
    parser.add_argument("--shapes", nargs="*", default=["8b", "1b", "3b"], help="first comes first")
    parser.add_argument(
        "--peers", nargs="*", default=[], choices=sorted(set().union(*PEERS_OF.values()))
    )
    parser.add_argument("--seconds", type=float, default=555.0, help="for everything")
    parser.add_argument(
        "--models", type=Path, help="folder where models are kept; default: none is"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
