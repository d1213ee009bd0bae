"""The whole way of training data beside TRL: JSON Lines with a chat template to packed arrays.

    python benchmarks/bench_records.py --model DIR --data gsm8k.jsonl --out results.json

DIR holds a tokenizer with a chat template; the file has `question` and `answer`. Ours is what a job does: read, check,
render, encode, spool, note every record in its journal, pack. TRL's is its own `SFTTrainer._prepare_dataset` on the
conversations, packing included (`bfd`), in one process. The third row is what a careful user writes by hand on
transformers: all conversations rendered, all texts encoded in one batch; it packs nothing and masks nothing. Seconds
are of processor time, one thread each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from record_engines import CAPACITY, Ours, Transformers, Trl

from fam_engine.jobs.bench.machine import describe_machine
from fam_engine.jobs.bench.workers import Worker, take_turns

# The slow ones get a part: their time a record does not depend on how many there are.
RECORDS = {"fam-engine": 7473, "trl": 1000, "transformers": 2000}
# A tenth of a second behind another engine would measure how fast our tables come back into the processor's caches.
PASSES = {"fam-engine": 10}

ENGINES = {"fam-engine": Ours, "trl": Trl, "transformers": Transformers}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker(engine, options.model, options.data, RECORDS[name], threads=1)
            )
            for name, engine in ENGINES.items()
        }
        work = {name: (PASSES[name],) if name in PASSES else () for name in workers}
        take_turns(workers, work, 1)
        runs = take_turns(workers, work, options.rounds)
    results: dict[str, Any] = {
        "environment": describe_machine("cpu", 1, ("trl", "datasets")),
        "capacity": CAPACITY,
        "results": {},
    }
    for name, found in runs.items():
        count = PASSES.get(name, 1) * RECORDS[name]
        micros = [run.cpu_seconds / count * 1e6 for run in found]
        low, high = np.percentile(micros, (20, 80))
        results["results"][name] = {
            "records": RECORDS[name],
            "microseconds_a_record": statistics.median(micros),
            "p20": low,
            "p80": high,
            "wall_microseconds_a_record": statistics.median(
                run.seconds / count * 1e6 for run in found
            ),
            "peak_bytes": max(run.peak_bytes for run in found),
            **found[-1].answer,
        }
    ours = results["results"]["fam-engine"]["microseconds_a_record"]
    for name, row in results["results"].items():
        row["ratio"] = row["microseconds_a_record"] / ours
        print(f"{name:14}{row['microseconds_a_record']:8.1f} us a record ({row['ratio']:.1f}x)")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
