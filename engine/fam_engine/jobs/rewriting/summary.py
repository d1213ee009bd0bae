"""What a rewriting job came to: how many answers were rewritten, by source and by attempt, and why others were not.

In: the journal of a job whose attempts are done. Out: the counts of `summary.json`. Always read = rewritten + fell
back + quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fam_engine.jobs.journal import Journal
from fam_engine.jobs.quarantine import left_out
from fam_engine.jobs.rewriting.verification import NO_REFERENCE, VERIFIED
from fam_engine.measure.accuracy import wilson

# What became of each record: its source, its verified candidate, else the reason of its last one.
_FATES = f"""
WITH fates AS (
    SELECT r.position, r.source, v.attempt, v.similarity, v.own_similarity, COALESCE(
        (SELECT reason FROM candidates WHERE position = r.position
         ORDER BY reason = '{VERIFIED}' DESC, attempt DESC LIMIT 1), '{NO_REFERENCE}') AS reason
    FROM records r
    LEFT JOIN candidates v ON v.position = r.position AND v.reason = '{VERIFIED}'
)
"""


def summarize_rewriting(journal: Journal, quarantined: Mapping[str, int]) -> dict[str, Any]:
    """Count.

    Args:
        journal: Of the job.
        quarantined: Records left out, by code.
    """
    sources = _sources(journal)
    num_records = sum(source["n"] for source in sources.values())
    num_rewritten = sum(source["rewritten"] for source in sources.values())
    num_bad = sum(quarantined.values())
    return {
        "records": {
            "read": num_records + num_bad,
            "rewritten": num_rewritten,
            "fell_back": num_records - num_rewritten,
            **left_out(quarantined),
        },
        "yield": asdict(wilson(num_rewritten, num_records)),
        "sources": sources,
        "attempts": _attempts(journal),
        "rejected": _counts(
            journal,
            f"SELECT reason, COUNT(*) FROM candidates WHERE reason != '{VERIFIED}' GROUP BY reason",
        ),
        "fell_back": _counts(
            journal,
            f"{_FATES} SELECT reason, COUNT(*) FROM fates WHERE reason != '{VERIFIED}' "
            "GROUP BY reason",
        ),
    }


def has_code(journal: Journal) -> bool:
    """Whether some candidates are judged by running them."""
    query = "SELECT EXISTS (SELECT 1 FROM records WHERE json_extract(reference, '$.kind') = 'code')"
    return bool(journal.db.execute(query).fetchone()[0])


def _sources(journal: Journal) -> dict[str, dict[str, Any]]:
    query = f"""{_FATES}
        SELECT source, COUNT(*), COUNT(attempt), AVG(similarity), AVG(own_similarity)
        FROM fates GROUP BY source ORDER BY MIN(position)"""
    return {
        source: {
            "n": count,
            "rewritten": rewritten,
            "fell_back": count - rewritten,
            "yield": asdict(wilson(rewritten, count)),
            "similarity": alike,
            "own_similarity": own_alike,
        }
        for source, count, rewritten, alike, own_alike in journal.db.execute(query)
    }


def _attempts(journal: Journal) -> list[dict[str, int]]:
    query = f"""
        SELECT attempt, COUNT(*), SUM(reason = '{VERIFIED}'), SUM(num_tokens)
        FROM candidates GROUP BY attempt ORDER BY attempt"""
    names = ("attempt", "candidates", "verified", "tokens")
    return [dict(zip(names, row, strict=True)) for row in journal.db.execute(query)]


def _counts(journal: Journal, query: str) -> dict[str, int]:
    counts = dict(journal.db.execute(query).fetchall())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
