from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fam_engine.data.records import detect_form, read_record
from fam_engine.jobs.scoring.files import scores_schema
from fam_engine.measure.metrics import perplexity

Rows = Sequence[Mapping[str, Any]]
Scored = Callable[..., tuple[Path, Path]]


class Silent:
    """Nobody to tell about progress."""

    def start(self, label: str, total: int | None, unit: str) -> None: ...

    def advance(self, count: int) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.fixture
def silent() -> Silent:
    return Silent()


def score_row(record: Mapping[str, Any], file: Path, line: int) -> dict[str, Any]:
    """What `score` would say of a record, its numbers taken from the key `score`."""
    score = {"nll_mean": 1.0, "num_response_tokens": 10, "flags": []} | record.get("score", {})
    read = read_record(record, detect_form(record), file=str(file), line=line, stem=file.stem)
    return {
        "id": record.get("id", f"{file}:{line}"),
        "file": str(file),
        "line": line,
        "source": record.get("source", file.stem),
        "group": record["prompt"],
        "correct": record.get("correct"),
        "num_bytes": len(record["response"].encode()),
        "text_digest": read.text_digest(),
        **score,
    }


def write_jsonl(path: Path, rows: Rows) -> Path:
    lines = [json.dumps({k: v for k, v in row.items() if k != "score"}) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    """Write records and the table that scoring them would leave; give both paths."""

    def write(
        rows: Rows, *, name: str = "data.jsonl", skip: Sequence[int] = ()
    ) -> tuple[Path, Path]:
        data = write_jsonl(tmp_path / name, rows)
        (tmp_path / "scored").mkdir(exist_ok=True)
        scores = tmp_path / "scored" / "scores.parquet"
        table = [score_row(r, data, n) for n, r in enumerate(rows, 1) if n not in skip]
        for row in table:
            row["perplexity"] = perplexity(row["nll_mean"])
        schema = scores_schema(ifd=False, in_context=False)
        columns = {name: [row.get(name) for row in table] for name in schema.names}
        pq.write_table(pa.table(columns, schema=schema), scores)
        quarantine = [
            {"file": str(data), "line": n, "offset": 0, "code": "E_TOO_LONG", "reason": "is long"}
            for n in skip
        ]
        (scores.parent / "quarantine.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in quarantine)
        )
        return data, scores

    return write
