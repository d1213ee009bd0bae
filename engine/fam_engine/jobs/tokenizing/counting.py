"""What tokenized records come to: counts, lengths, how full packs of them would be.

In: the journal and the spool of pass 1. Out: plain values for `summary.json`. A record's length is what a model reads
of it: prompt, response and end of turn but for the last token, which is only predicted.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from fam_engine._rust_tokenize import Spool, pack_lengths, plan_batches
from fam_engine.jobs.journal import Journal

Counts = npt.NDArray[np.int64]

_PERCENTILES = (5, 25, 50, 75, 95, 99)
_NUM_BARS = 12
_MODES: Final[tuple[Literal["global", "windowed", "in-order"], ...]] = (
    "global",
    "windowed",
    "in-order",
)


def count_records(journal: Journal, spool: Spool, *, capacity: int) -> dict[str, Any]:
    """Count records, tokens, bytes, flags, lengths and packs.

    Args:
        journal: Of pass 1.
        spool: Of pass 1, an entry a record.
        capacity: Tokens a pack.
    """
    db = journal.db
    index = spool.index()
    prompt, targets = (index[name].astype(np.int64) for name in ("context_len", "target_len"))
    end_of_turn = index["num_eot"].astype(np.int64)
    response = targets - end_of_turn
    lengths = prompt + np.maximum(targets - 1, 0)
    quarantined = dict(
        db.execute("SELECT code, COUNT(*) FROM quarantine GROUP BY code ORDER BY code")
    )
    (num_bytes,) = db.execute("SELECT SUM(num_bytes) FROM records").fetchone()
    flags = db.execute(
        "SELECT value, COUNT(*) FROM records, json_each(flags) GROUP BY value ORDER BY value"
    )
    num_bad = sum(quarantined.values())
    return {
        "records": {
            "read": len(spool) + num_bad,
            "tokenized": len(spool),
            "quarantined": num_bad,
            "quarantined_by_code": quarantined,
        },
        "forms": journal.get("forms"),
        "tokens": {
            "prompt": int(prompt.sum()),
            "response": int(response.sum()),
            "end_of_turn": int(end_of_turn.sum()),
        },
        "response_bytes": num_bytes,
        "response_tokens_per_byte": int(response.sum()) / num_bytes,
        "lengths": {
            name: describe_lengths(counts)
            for name, counts in (("prompt", prompt), ("response", response), ("record", lengths))
        },
        "histogram": histogram(lengths),
        "flags": dict(flags),
        "packs": count_packs(spool, lengths, capacity),
    }


def describe_lengths(counts: Counts) -> dict[str, float]:
    """Give mean, percentiles and extremes of some lengths."""
    values = np.percentile(counts, _PERCENTILES)
    percentiles = {f"p{p}": float(value) for p, value in zip(_PERCENTILES, values, strict=True)}
    return {
        "mean": float(counts.mean()),
        "min": int(counts.min()),
        **percentiles,
        "max": int(counts.max()),
    }


def histogram(lengths: Counts) -> dict[str, list[int]]:
    """Count lengths in about a dozen bars of equal width; the last bar has all that are longer.

    Bars end at the 99th percentile: one record of a million tokens must not make all others one bar.

    Returns:
        `start`: least length of each bar; `count`: how many there are.
    """
    width = max(1, int(np.ceil((np.percentile(lengths, 99) + 1) / _NUM_BARS)))
    bars = np.minimum(lengths // width, _NUM_BARS)
    counts = np.bincount(bars)
    return {"start": [width * bar for bar in range(len(counts))], "count": counts.tolist()}


def count_packs(spool: Spool, lengths: Counts, capacity: int) -> dict[str, Any]:
    """Pack the records, each mode in turn, and with prompts shared as scoring and training do.

    Records longer than a pack are left out: they would need to be cut or dropped.
    """
    fitting = np.flatnonzero(lengths <= capacity)
    packed = lengths[fitting]
    ways: dict[str, dict[str, Any]] = {}
    if len(fitting):
        for mode in _MODES:
            num_packs = int(pack_lengths(packed, capacity, mode=mode).max()) + 1
            ways[mode] = _fill(int(packed.sum()), num_packs, capacity)
        plan = plan_batches(spool, fitting.astype(np.int64), max_tokens=capacity)
        ways["shared-prompts"] = _fill(plan.total_tokens, plan.num_batches, capacity)
    return {"capacity": capacity, "too_long": len(lengths) - len(fitting), "ways": ways}


def _fill(num_tokens: int, num_packs: int, capacity: int) -> dict[str, Any]:
    return {"packs": num_packs, "tokens": num_tokens, "fill": num_tokens / (num_packs * capacity)}
