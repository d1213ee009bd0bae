"""What a finished scoring job leaves for its user: the tables.

In: the journal of a finished job. Out: `scores.parquet` and `tokens.parquet`, each whole or absent. Rows come out of
SQLite in input order, so the table never has to fit in memory, and the same results always give the same bytes: fixed
schema, fixed row groups, no timestamps inside.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fam_engine._rust_tokenize import Spool
from fam_engine.data.files import write_whole
from fam_engine.measure.metrics import ifd_scores, perplexity

_ROWS_A_GROUP = 65536

_LABELS = [
    ("id", pa.string()),
    ("file", pa.string()),
    ("line", pa.int32()),
    ("source", pa.string()),
    ("group", pa.string()),
    ("correct", pa.bool_()),
    ("num_prompt_tokens", pa.int32()),
    ("num_response_tokens", pa.int32()),
    ("num_bytes", pa.int32()),
    ("text_digest", pa.int64()),
]
_METRICS = (
    "nll_sum",
    "nll_mean",
    "perplexity",
    "bits_per_byte",
    "eos_nll",
    "rank_mean",
    "rank_surprisal_ratio",
    "entropy_mean",
    "margin_mean",
    "top1_rate",
    "surprising_rate",
)
_IFD = ("ifd", "ifd_loss_ratio")
_IN_CONTEXT = ("in_context_nll_mean", "in_context_perplexity")

TOKENS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())),
        ("ranks", pa.list_(pa.int32())),
        ("entropies", pa.list_(pa.float64())),
    ]
)


def scores_schema(*, ifd: bool, in_context: bool) -> pa.Schema:
    """Give the columns of the scores table."""
    extra = (_IFD if ifd else ()) + (_IN_CONTEXT if in_context else ())
    numbers = [(name, pa.float64()) for name in _METRICS]
    asked = [(name, pa.float64()) for name in extra]
    return pa.schema([*_LABELS, *numbers, ("flags", pa.list_(pa.string())), *asked])


def score_rows(db: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """Give a row a scored record, in input order."""
    metrics = ", ".join(f"main.{name}" for name in _METRICS)
    # A record without a result of its own was quarantined; its row would say nothing.
    query = f"""
        SELECT r.id, r.file, r.line, r.source, r.grp, r.correct, r.num_prompt_tokens,
               r.num_response_tokens, r.num_bytes, r.text_digest, {metrics}, r.flags,
               main.first_nll, alone.nll_sum, alone.num_response_tokens, context.nll_mean
        FROM records r
        JOIN results main ON main.entry = r.entry AND main.num_response_tokens IS NOT NULL
        LEFT JOIN results alone ON alone.entry = r.entry_alone
        LEFT JOIN results context ON context.entry = r.entry_in_context
        ORDER BY r.position
    """
    labels = [name for name, _ in _LABELS]
    for row in db.execute(query):
        score = dict(zip([*labels, *_METRICS], row, strict=False))
        score["correct"] = None if score["correct"] is None else bool(score["correct"])
        *_, flags, first_nll, alone_sum, alone_count, in_context = row
        score["flags"] = json.loads(flags)
        score.update(_ifd(score, first_nll, alone_sum, alone_count))
        score["in_context_nll_mean"] = in_context
        score["in_context_perplexity"] = perplexity(in_context)
        if score["perplexity"] is None and score["nll_mean"] is not None:
            score["flags"].append("perplexity_overflow")
        yield score


def _ifd(
    score: dict[str, Any], first_nll: float | None, alone_sum: float | None, alone_count: float
) -> dict[str, float | None]:
    """Compare the response with and without its prompt, over the same tokens."""
    if alone_sum is None or first_nll is None or not alone_count:
        return dict.fromkeys(_IFD)
    # Without a BOS the first token has no probability alone, so it is left out on both sides.
    left_out = first_nll if alone_count < score["num_response_tokens"] else 0.0
    in_context = (score["nll_sum"] - left_out) / alone_count
    return dict(zip(_IFD, ifd_scores(in_context, alone_sum / alone_count), strict=True))


def write_scores(path: Path, db: sqlite3.Connection, schema: pa.Schema) -> int:
    """Write the scores table.

    Returns:
        Number of rows written.
    """
    return write_table(path, schema, score_rows(db))


def write_tokens(path: Path, db: sqlite3.Connection, spool: Spool) -> None:
    """Write the table of token facts."""
    write_table(path, TOKENS_SCHEMA, _token_rows(db, spool))


def _token_rows(db: sqlite3.Connection, spool: Spool) -> Iterator[dict[str, Any]]:
    query = """
        SELECT r.id, r.entry, r.num_response_tokens, t.logprobs, t.ranks, t.entropies
        FROM records r JOIN tokens t ON t.entry = r.entry ORDER BY r.position
    """
    for name, entry, count, logprobs, ranks, entropies in db.execute(query):
        _, targets = spool.read(entry)
        yield {
            "id": name,
            "token_ids": targets[:count],
            "logprobs": np.frombuffer(logprobs, np.float64)[:count],
            "ranks": np.frombuffer(ranks, np.int32)[:count],
            "entropies": np.frombuffer(entropies, np.float64)[:count],
        }


def write_table(path: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> int:
    """Write rows as Parquet, some at a time.

    Returns:
        Number of rows written.
    """
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            while chunk := list(islice(rows, _ROWS_A_GROUP)):
                columns = [[row.get(name) for row in chunk] for name in schema.names]
                arrays = [
                    pa.array(column, type=field.type)
                    for column, field in zip(columns, schema, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                count += len(chunk)

    write_whole(path, write)
    return count
