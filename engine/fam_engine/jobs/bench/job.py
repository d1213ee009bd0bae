"""`fam-engine bench`: every workload in a process of its own, warmed up, several rounds.

In: a `BenchConfig`. Out: a result for JSON and, against an earlier one, what changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fam_engine.config import BenchConfig, nearest
from fam_engine.data.files import write_text_whole
from fam_engine.errors import UsageError
from fam_engine.jobs.bench.compare import check_comparable, compare, read_result
from fam_engine.jobs.bench.machine import describe_machine
from fam_engine.jobs.bench.workers import Run, Worker
from fam_engine.jobs.bench.workloads import WORKLOADS, Measured
from fam_engine.jobs.journal import storage_errors
from fam_engine.jobs.progress import Progress
from fam_engine.measure.timing import Change, Timing
from fam_engine.model.devices import choose_device
from fam_engine.model.folders import hash_model, resolve_model


@dataclass(frozen=True)
class BenchOutcome:
    """What was measured.

    Attributes:
        result: `environment`, `settings` and `workloads`, as they are written to JSON.
        changes: Against the earlier result, if one was given.
    """

    result: dict[str, Any]
    changes: tuple[Change, ...]


def run_bench(config: BenchConfig, progress: Progress) -> BenchOutcome:
    """Measure the workloads asked for.

    Raises:
        UsageError: An unknown workload, or an earlier result that cannot be compared.
        ModelRefusedError: The model cannot be used.
        StorageError: The result cannot be written.
    """
    names = _names(config)
    before = read_result(config.compare) if config.compare else None
    device = choose_device(config.device).type
    if config.out is not None:
        with storage_errors(config.out):  # now, not after minutes of measuring
            config.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "environment": describe_machine(device, config.threads),
        "settings": _settings(config, device),
        "workloads": dict.fromkeys(names),
    }
    if before is not None:
        check_comparable(before, result, where=str(config.compare))
    result["workloads"] = {name: _measure(name, config, device, progress) for name in names}
    if config.out is not None:
        with storage_errors(config.out):
            write_text_whole(config.out, json.dumps(result, indent=1) + "\n")
    if before is None:
        return BenchOutcome(result, ())
    changes = compare(before, result, max_slowdown=config.max_slowdown, where=str(config.compare))
    return BenchOutcome(result, tuple(changes))


def _names(config: BenchConfig) -> tuple[str, ...]:
    known = list(WORKLOADS)
    for name in config.workloads:
        if name not in known:
            raise UsageError(
                f"unknown workload `{name}`{nearest(name, known)}, expected some of "
                f"{', '.join(known)}",
                code="E_BENCH_WORKLOAD",
            )
    return config.workloads or tuple(known)


def _settings(config: BenchConfig, device: str) -> dict[str, Any]:
    folder, revision = resolve_model(config.model, download=config.download)
    names = ("model", "precision", "compute_dtype", "limit", "rounds", "warmup")
    return {
        **config.model_dump(mode="json", include=set(names)),
        "model_sha256": hash_model(folder),
        "revision": revision,
        "device": device,
    }


def _measure(name: str, config: BenchConfig, device: str, progress: Progress) -> dict[str, Any]:
    progress.start(name, config.warmup + config.rounds, "runs")
    with Worker(Measured, name, config, threads=config.threads, device=device) as worker:
        runs: list[Run] = []
        for _ in range(config.warmup + config.rounds):
            runs.append(worker.run())
            progress.advance(1)
    amount, details = runs[-1].answer
    timing = Timing(
        seconds=tuple(run.seconds for run in runs[config.warmup :]),
        first_seconds=runs[0].seconds,
        amount=amount,
        unit=WORKLOADS[name].unit,
        peak_bytes=max(run.peak_bytes for run in runs),
    )
    low, high = timing.spread()
    return {
        "unit": timing.unit,
        "amount": timing.amount,
        "per_second": timing.rate(),
        "median_seconds": timing.median(),
        "p20_seconds": low,
        "p80_seconds": high,
        "first_seconds": timing.first_seconds,
        "seconds": timing.seconds,
        "peak_bytes": timing.peak_bytes,
        "details": details,
    }
