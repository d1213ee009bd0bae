"""What a finished evaluation leaves: every answer, and what was left out.

In: the samples of all models. Out: `samples.parquet`, a row a model and question, models in the order given and
questions in the order of the files; `quarantine.jsonl`. Each is whole or absent.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from fam_engine.jobs.evaluation.samples import Sample
from fam_engine.jobs.quarantine import Quarantined, read_quarantine, write_quarantine
from fam_engine.jobs.scoring.files import write_table

SAMPLES_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("task", pa.string()),
        ("id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int32()),
        ("kind", pa.string()),
        ("method", pa.string()),
        ("correct", pa.bool_()),
        ("answer", pa.string()),
        ("extracted", pa.string()),
        ("reason", pa.string()),
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("num_prompt_tokens", pa.int32()),
        ("num_response_tokens", pa.int32()),
        ("choices", pa.list_(pa.string())),
        ("choice_nll_sums", pa.list_(pa.float64())),
        ("correct_acc", pa.bool_()),
        ("correct_acc_norm", pa.bool_()),
        ("prompt", pa.string()),
        ("code", pa.string()),
    ]
)


def write_samples(path: Path, models: Mapping[str, Sequence[Sample]]) -> None:
    """Write all answers, model after model."""
    rows = (
        {"model": name, **vars(sample)} for name, samples in models.items() for sample in samples
    )
    write_table(path, SAMPLES_SCHEMA, rows)


def write_left_out(
    path: Path, db: sqlite3.Connection, models: Mapping[str, Sequence[Sample]]
) -> dict[str, int]:
    """Write what was left out: rows that cannot be asked, and questions a model has no verdict on.

    Returns:
        Number of records by code; a record that failed for several models counts once.
    """
    unread = list(read_quarantine(db))
    codes = Counter(row[3] for row in unread)
    failed: dict[int, str] = {}
    unjudged: list[Quarantined] = []
    for name, samples in models.items():
        for sample in samples:
            if sample.code is None:
                continue
            failed.setdefault(sample.position, sample.code)
            why = f"{name}: {sample.reason}"
            unjudged.append((sample.file, sample.line, None, sample.code, why))
    codes.update(failed.values())
    write_quarantine(path, [*unread, *unjudged])
    return dict(codes)
