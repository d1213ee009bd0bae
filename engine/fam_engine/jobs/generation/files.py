"""What a finished generating job leaves: the records, and what is said of them in figures.

In: the journal of a job whose texts are all there. Out: the rows of `generated.jsonl` and the counts
of `summary.json`. Records come in the order of the input, the samples of one after another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fam_engine.jobs.generation.rows import with_answer
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.quarantine import left_out
from fam_engine.measure.metrics import perplexity

_TEXTS = """
SELECT q.id, q.row, t.sample, t.text, t.num_tokens, t.finish_reason, t.correct,
       q.flags LIKE '%"prompt_cut"%', t.nll_sum, t.eos_nll
FROM questions q JOIN texts t USING (position)
WHERE t.text != '' ORDER BY q.position, t.sample
"""


@dataclass(frozen=True)
class Origin:
    """Who wrote the texts of a run.

    Attributes:
        source: The records' `source`.
        model: As the user named it.
        adapter: Its folder, or None.
        seed: Of the run.
    """

    source: str
    model: str
    adapter: str | None
    seed: int


def generated_records(journal: Journal, origin: Origin) -> Iterator[dict[str, Any]]:
    """Give the records in order: the question's own row, its answer replaced, and where it is from."""
    for *made, is_cut, nll_sum, eos_nll in journal.db.execute(_TEXTS):
        parent, row, sample, text, num_tokens, reason, correct = made
        if is_cut:  # a loss is of the record as it stands here, whose prompt is whole
            nll_sum = eos_nll = None
        verdict = None if correct is None else bool(correct)
        record = with_answer(json.loads(row), text)
        record |= {"id": f"{parent}#{sample}", "source": origin.source}
        if verdict is not None:
            record["correct"] = verdict
        record["provenance"] = {
            "method": "generate",
            "parent": parent,
            "model": origin.model,
            "adapter": origin.adapter,
            "seed": origin.seed,
            "attempt": sample,
            "verified": verdict,
            "finish_reason": reason,
            "num_tokens": num_tokens,
            "nll_sum": nll_sum,
            "eos_nll": eos_nll,
            "perplexity": None if nll_sum is None else perplexity(nll_sum / num_tokens),
        }
        yield record


def count_texts(journal: Journal, quarantined: dict[str, int]) -> dict[str, Any]:
    """Count records and samples for the summary."""

    def one(query: str) -> int:
        return int(journal.db.execute(query).fetchone()[0] or 0)

    generated = one("SELECT COUNT(DISTINCT position) FROM texts WHERE text != ''")
    judged = "SELECT COUNT(*) FROM texts WHERE correct IS NOT NULL"
    return {
        "records": {
            "read": generated + sum(quarantined.values()),
            "generated": generated,
            **left_out(quarantined),
        },
        "samples": {
            "written": one("SELECT COUNT(*) FROM texts WHERE text != ''"),
            "empty": one(
                "SELECT COUNT(*) FROM texts WHERE text = '' AND finish_reason IS NOT NULL"
            ),
            "judged": one(judged),
            "correct": one(f"{judged} AND correct"),
        },
        "finish_reasons": dict(
            journal.db.execute(
                "SELECT finish_reason, COUNT(*) FROM texts WHERE text != '' GROUP BY finish_reason"
            )
        ),
        "tokens": {
            "prompt": one("SELECT SUM(num_prompt_tokens) FROM questions"),
            "generated": one("SELECT SUM(num_tokens) FROM texts"),
        },
        "flags": dict(
            journal.db.execute(
                "SELECT value, COUNT(*) FROM questions, json_each(flags) GROUP BY value"
            )
        ),
    }
