"""What a job on many workers costs beside the model: reading, cutting in parts, claims, gathering, the tables.

    python benchmarks/bench_sharing.py --records 200000 --out benchmarks/results/sharing_cpu.json

Scores are made up, so no model is loaded and the figures are those of any model. Seconds are processor time of this
process and its children, so that a busy machine counts for little; bytes are those on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fam_engine._rust_tokenize import Spool
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.embedded import DEMO_RECORDS
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring.entries import METRICS, SCHEMA
from fam_engine.jobs.scoring.files import scores_schema, write_scores
from fam_engine.jobs.scoring.ingest import DataFile, IngestPlan, ingest_records
from fam_engine.jobs.scoring.job import _columns
from fam_engine.jobs.scoring.sharing.claims import Worker
from fam_engine.jobs.scoring.sharing.gathering import gather
from fam_engine.jobs.scoring.sharing.parts import FOLDER, read_plan, write_plan
from fam_engine.measure.summary import summarize
from fam_engine.model.loading import resolve_model

NUM_WORKERS = 8
NUM_CLAIMS = 10_000


def cpu_seconds() -> float:
    """Give the processor time so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(do: Callable[[], Any]) -> tuple[Any, float]:
    """Do something; give what came of it, and the seconds it took."""
    began = cpu_seconds()
    return do(), cpu_seconds() - began


def write_input(path: Path, num_records: int) -> None:
    """Write the records of the demo again and again, each time as other questions."""
    records = [json.loads(line) for line in DEMO_RECORDS.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_records):
            round_, place = divmod(number, len(records))
            record = records[place]
            changed = record | {"id": str(number), "prompt": f"{round_} {record['prompt']}"}
            file.write(json.dumps(changed) + "\n")


def made_up(entries: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """Give results of some entries."""
    names = {"num_prompt_tokens": 60, "num_response_tokens": 120, "num_bytes": 480}
    for entry in entries.tolist():
        nll = 1.0 + (entry * 7919 % 10_007) / 10_007
        yield (entry, nll, *(names.get(name, nll) for name in METRICS))


def keep_results(parts: Path, entries: np.ndarray) -> None:
    """Let a worker claim a part and keep results of some entries."""
    marks = ", ".join("?" * (len(METRICS) + 2))
    with Worker(parts, {}, SCHEMA) as worker, worker.journal.commit() as db:
        assert worker.claim(f"{number:06}" for number in range(NUM_WORKERS))
        db.executemany(f"INSERT INTO results VALUES ({marks})", made_up(entries))


def time_claims(folder: Path) -> float:
    """Give the seconds of one claim of a job of many parts."""
    names = [f"{number:06}" for number in range(NUM_CLAIMS)]
    with Worker(folder, {}, SCHEMA) as worker:
        for name in names[:-20]:
            (folder / "claims" / f"{name}.1").symlink_to(worker.name)
        began = time.perf_counter()
        for name in names[-20:]:
            worker.claim([name])
        return (time.perf_counter() - began) / 20


def measure(out: Path, num_records: int) -> dict[str, float]:
    """Measure all steps on so many records."""
    data = out / "data.jsonl"
    write_input(data, num_records)
    model, _ = resolve_model("embedded", download=False)
    found: dict[str, float] = {"records": num_records, "input_bytes": data.stat().st_size}
    with TextEncoder(model) as encoder, Journal(out, {}, SCHEMA) as journal:
        plan = IngestPlan(1 << 20, "quarantine")
        files = [DataFile("data", data)]
        spool, found["read_seconds"] = timed(
            lambda: ingest_records(journal, encoder, plan, files, lambda _: None)
        )
        found |= after_reading(journal, spool)
    return found


def after_reading(journal: Journal, spool: Spool) -> dict[str, float]:
    """Measure what comes after pass 1."""
    parts, db = journal.folder / FOLDER, journal.db
    parts.mkdir()
    found = {
        "spool_bytes": sum(file.stat().st_size for file in (journal.folder / "spool").iterdir()),
        "journal_bytes": db.execute("PRAGMA page_count").fetchone()[0] * 4096,
    }
    entries = np.arange(len(spool))
    _, found["parts_seconds"] = timed(lambda: write_plan(parts, spool, entries, {}, []))
    plan = read_plan(parts)
    assert plan is not None
    found["parts"] = len(plan)
    found["claim_seconds"] = time_claims(journal.folder / "claims")
    for share in np.array_split(entries, NUM_WORKERS):
        keep_results(parts, share)
    found["worker_bytes"] = sum(
        file.stat().st_size for file in parts.rglob("journal.sqlite*") if file.is_file()
    )
    _, found["gather_seconds"] = timed(lambda: gather(journal))
    table = journal.folder.parent / "scores.parquet"
    schema = scores_schema(ifd=False, in_context=False)
    _, found["write_seconds"] = timed(lambda: write_scores(table, db, schema))
    found["table_bytes"] = table.stat().st_size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, found["summary_seconds"] = timed(lambda: summarize(_columns(pq.read_table(table)), seed=0))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["summary_more_bytes"] = (after - before) * 1024
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.records)
    found["cores"] = os.cpu_count() or 0
    for name, value in found.items():
        a_record = f"  {value / options.records * 1e6:10.2f} a million records"
        print(f"{name:20} {value:16,.3f}{a_record}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
