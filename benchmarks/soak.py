"""An hour of scoring while everything goes wrong: tables stay right, memory and descriptors stay flat.

    python benchmarks/soak.py --seconds 3600 --out benchmarks/results/soak_cpu.json

The process scores the same records again and again, as a service would: in itself with batches that run out of memory
at random, and in forked children that are killed (SIGKILL), stopped (SIGTERM), given a disk that fills up (a limit on
the size of files) or little memory (a limit on address space), and started again with the same command until they
finish. Among the records are broken ones. Each finished table is compared, byte for byte, with that of an undisturbed
job. After each job its own resident memory and number of open descriptors are noted; the slope is by least squares over
the last three quarters, when caches are full. Full disks of a real file system are left to tests/faults.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fam_engine.model  # noqa: F401 - says how matrices are multiplied, before any are
from fam_engine.cli import main as program
from fam_engine.config import ScoreConfig
from fam_engine.jobs.bench.machine import describe_machine
from fam_engine.jobs.progress import Nobody
from fam_engine.jobs.scoring.job import run_score
from fam_engine.model.decoder import Decoder

NUM_RECORDS = 120
BROKEN = ['{"prompt": "a"', '{"prompt": "a\\n", "response": ""}', '{"a": 1, "a": 2}', "\x00\x1b[2J"]
FILES = ("scores.parquet", "quarantine.jsonl")
# Until then allocator and caches grow: measured, 37 MB in 18 jobs, then 1 MB in 42.
WARM_JOBS = 20
FINISHED = 3  # some records are broken
# What a disturbed child may end with: finished, storage, device, interrupted, killed, terminated before the job listens
# (a shell says 143 of this, too).
ALLOWED = {FINISHED, 5, 8, 143, -signal.SIGKILL, -signal.SIGTERM}


def write_records(path: Path) -> None:
    """Write records of three sources, every tenth line broken."""
    generator = random.Random(0)
    words = ["one", "two", "three", "apples", "more", "so"]
    with path.open("w") as file:
        for number in range(NUM_RECORDS):
            response = " ".join(generator.choices(words, k=generator.randint(1, 40)))
            record = {"prompt": f"question {number // 2}?\n", "response": response}
            file.write(json.dumps(record) + "\n")
            if number % 10 == 0:
                file.write(generator.choice(BROKEN) + "\n")


def job(data: Path, out: Path) -> ScoreConfig:
    """Give the settings of the one job there is."""
    settings = {"model": "embedded", "data": (str(data),), "out": out, "device": "cpu"}
    return ScoreConfig(**settings, max_tokens_per_batch=512)


def score_here(data: Path, out: Path, rng: random.Random) -> None:
    """Score in this process; every tenth forward of more than one record runs out of memory."""
    forward = Decoder.hidden_rows

    def moody(decoder: Decoder, batch: Any, **more: Any) -> torch.Tensor:  # noqa: ANN401
        if len(batch.entries) > 1 and rng.random() < 0.1:
            raise torch.OutOfMemoryError("injected")
        return forward(decoder, batch, **more)

    Decoder.hidden_rows = moody  # type: ignore[method-assign, assignment]
    try:
        run_score(job(data, out), Nobody())
    finally:
        Decoder.hidden_rows = forward  # type: ignore[method-assign]


def fork(data: Path, out: Path, limit: Callable[[], None]) -> int:
    """Start the program in a child under a limit."""
    child = os.fork()
    if child:
        return child
    limit()
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    flags = ("--model", "embedded", "--data", data, "--out", out, "--device", "cpu", "--quiet")
    sys.argv = ["fam-engine", "score", *map(str, flags), "--max-tokens-per-batch", "512"]
    try:
        program.main()
        os._exit(0)
    except SystemExit as stop:
        os._exit(int(stop.code or 0))


def full_disk(rng: random.Random) -> Callable[[], None]:
    """Give a limit on the size of files, as a disk that fills up."""
    size = rng.randrange(1 << 12, 1 << 18)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def little_memory(rng: random.Random) -> Callable[[], None]:
    """Give a limit on address space a little above what is in use."""
    more = rng.randrange(1 << 20, 1 << 27)

    def limit() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    return limit


def score_in_children(data: Path, out: Path, rng: random.Random, seconds: float) -> Counter[str]:
    """Score in children, each disturbed in some way, until one finishes; give what was done and came of it."""
    seen: Counter[str] = Counter()
    while True:
        chaos = rng.choice(["kill", "terminate", "full disk", "little memory", "nothing"])
        limits = {"full disk": full_disk, "little memory": little_memory}
        limit = limits[chaos](rng) if chaos in limits else lambda: None
        child = fork(data, out, limit)
        if chaos in ("kill", "terminate"):
            time.sleep(rng.uniform(0.02, 1.0) * seconds)
            os.kill(child, signal.SIGKILL if chaos == "kill" else signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen[f"{chaos}: exit {code}"] += 1
        if code == FINISHED:
            return seen
        if code not in ALLOWED:
            seen["unexpected"] += 1


def sample() -> tuple[float, int]:
    """Give resident memory, MB, and the number of open descriptors."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd"))


def slope_an_hour(times: list[float], values: list[float]) -> float:
    """Give the least-squares slope of the last three quarters, a unit an hour."""
    first = len(times) // 4
    return float(np.polyfit(times[first:], values[first:], 1)[0]) * 3600


def soak(seconds: float, seed: int) -> dict[str, Any]:
    """Score and disturb for so long."""
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    times, memory, descriptors = [], [], []
    mismatches = tables = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.jsonl"
        write_records(data)
        for number in range(WARM_JOBS):
            score_here(data, folder / f"warm-{number}", rng)
        began = time.monotonic()
        run_score(job(data, folder / "whole"), Nobody())
        duration = time.monotonic() - began
        expected = [(folder / "whole" / file).read_bytes() for file in FILES]
        while (now := time.monotonic() - began) < seconds:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                here, children = Path(out) / "here", Path(out) / "children"
                score_here(data, here, rng)
                seen += score_in_children(data, children, rng, duration)
                for done in (here, children):
                    tables += 1
                    mismatches += [(done / file).read_bytes() for file in FILES] != expected
            rss, fds = sample()
            times.append(now)
            memory.append(rss)
            descriptors.append(fds)
    return {
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
        "tables": tables,
        "mismatches": mismatches,
        "unexpected_exits": seen.pop("unexpected", 0),
        "runs": dict(sorted(seen.items())),
        "rss_megabytes": {"first": memory[0], "last": memory[-1], "most": max(memory)},
        "rss_slope_megabytes_an_hour": slope_an_hour(times, memory),
        "descriptors": {"first": descriptors[0], "last": descriptors[-1], "most": max(descriptors)},
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2), "big"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {"environment": describe_machine("cpu", 1, ()), **soak(options.seconds, options.seed)}
    text = json.dumps(results, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    sys.exit(bool(results["mismatches"] or results["unexpected_exits"]))


if __name__ == "__main__":
    main()
