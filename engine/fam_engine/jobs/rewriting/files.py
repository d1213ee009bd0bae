"""What a finished rewriting job leaves: the records with their new answers, and every candidate there was.

In: the journal of a job whose attempts are done. Out: the rows of `rewritten.jsonl` and `candidates.parquet`.
`rewritten.jsonl` holds every readable record, in the order of the input and in its own form: with its first verified
candidate, or with the answer it came with. Both say in `provenance` what they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fam_engine.jobs.generation.rows import with_answer
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.references import Reference
from fam_engine.jobs.rewriting.verification import NO_REFERENCE, VERIFIED

CANDIDATES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int32()),
        ("source", pa.string()),
        ("attempt", pa.int32()),
        ("text", pa.string()),
        ("num_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("verified", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("extracted", pa.string()),
        ("edit_distance", pa.int32()),
        ("similarity", pa.float64()),
        ("own_similarity", pa.float64()),
    ]
)
# The candidate a record is written with, or the last one, which says why there is none.
_LAST = f"""
SELECT r.id, r.source, r.row, r.response, r.correct, r.reference,
       c.attempt, c.text, c.num_tokens, c.finish_reason, c.reason
FROM records r LEFT JOIN candidates c ON c.position = r.position AND c.attempt = (
    SELECT attempt FROM candidates WHERE position = r.position
    ORDER BY reason = '{VERIFIED}' DESC, attempt DESC LIMIT 1)
ORDER BY r.position
"""


@dataclass(frozen=True)
class Writer:
    """Who rewrote, and how.

    Attributes:
        method: Of rewriting.
        model: As the user named it.
        adapter: Its folder, or None.
        seed: Of the run.
    """

    method: str
    model: str
    adapter: str | None
    seed: int


def rewritten_records(journal: Journal, writer: Writer) -> Iterator[dict[str, Any]]:
    """Give the records in order."""
    names = (
        *("id", "source", "row", "response", "correct", "reference"),
        *("attempt", "text", "num_tokens", "finish_reason", "reason"),
    )
    for values in journal.db.execute(_LAST):
        yield _record(dict(zip(names, values, strict=True)), writer)


def _record(found: Mapping[str, Any], writer: Writer) -> dict[str, Any]:
    is_verified = found["reason"] == VERIFIED
    row = json.loads(found["row"])
    earlier = row.pop("provenance", {})
    row.pop("id", None)
    record = {
        "id": f"{found['id']}#{writer.method}",
        **with_answer(row, found["text"] if is_verified else found["response"]),
        "source": f"{found['source']}#{writer.method}",
    }
    correct = _correct(found, is_verified=is_verified)
    if correct is not None:
        record["correct"] = correct
    record["provenance"] = (
        earlier | vars(writer) | {"parent": found["id"]} | _came_about(found, is_verified)
    )
    return record


def _correct(found: Mapping[str, Any], *, is_verified: bool) -> bool | None:
    """Say whether the answer is right: by the gold answer, or like the one whose final answer it shares."""
    if is_verified and Reference.from_json(found["reference"]).is_gold:
        return True
    return None if found["correct"] is None else bool(found["correct"])


def _came_about(found: Mapping[str, Any], is_verified: bool) -> dict[str, Any]:
    if not is_verified:
        reason = found["reason"] or NO_REFERENCE
        return {"attempt": None, "verified": False, "fell_back": True, "reason": reason}
    made = {name: found[name] for name in ("attempt", "finish_reason", "num_tokens")}
    return made | {"verified": True, "fell_back": False}


def candidate_rows(journal: Journal) -> Iterator[dict[str, Any]]:
    """Give every candidate with its verdict."""
    columns = [name for name in CANDIDATES_SCHEMA.names if name != "verified"]
    query = f"""SELECT {", ".join(columns)} FROM candidates JOIN records USING (position)
                ORDER BY position, attempt"""
    for values in journal.db.execute(query):
        row = dict(zip(columns, values, strict=True))
        yield row | {"verified": row["reason"] == VERIFIED}
