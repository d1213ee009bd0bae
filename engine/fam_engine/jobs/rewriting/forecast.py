"""The dry run: what rewriting would ask, and how often, without loading the model.

In: a `RewriteConfig`. Out: a `RewriteForecast`. Counts of records and prompts come from the real pass 1.
How many candidates fail is not known, so candidates and tokens are given for none and for all failing, each text as
long as `--max-new-tokens`. Where a prompt will hold the model's own first answer, the given answer stands in for it.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fam_engine.config import RewriteConfig
from fam_engine.errors import RecordError
from fam_engine.jobs.generation.prepare import Progress
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.rewriting.asking import prompt_ids
from fam_engine.jobs.rewriting.ingest import read_source
from fam_engine.jobs.rewriting.prepare import Prepared, prepared
from fam_engine.jobs.running import quarantined_by_code


@dataclass(frozen=True)
class RewriteForecast:
    """What a job would do, from a dry run.

    Attributes:
        num_records: Records that can be read.
        quarantined: Records that would be left out, by code.
        unverifiable: Records nobody could verify a new answer to; they keep theirs.
        gold: Records with a gold answer or tests; the others' final answers are read from their responses.
        prompt: The first prompt, as the model would see it; None if there is nothing to ask.
        prompt_tokens: Mean and maximum of the prompts of the last attempt.
        cramped: Prompts that leave the model less than --max-new-tokens.
        candidates: Fewest and most.
        tokens: Most tokens to write, for the fewest and the most candidates.
    """

    num_records: int
    quarantined: dict[str, int]
    unverifiable: int
    gold: int
    prompt: str | None
    prompt_tokens: dict[str, float]
    cramped: int
    candidates: tuple[int, int]
    tokens: tuple[int, int]


def forecast_rewrite(config: RewriteConfig, progress: Progress) -> RewriteForecast:
    """Read the records and say what rewriting their answers would take.

    Raises:
        FamEngineError: As `run_rewrite` would, for data, templates and tokenizer.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fam-engine-") as folder,
        Interrupts() as interrupts,
        prepared(config, Path(folder), progress, interrupts) as parts,
    ):
        db = parts.journal.db
        num_records, verifiable, gold = db.execute(
            "SELECT COUNT(*), COUNT(reference), "
            "COALESCE(SUM(json_extract(reference, '$.is_gold')), 0) FROM records"
        ).fetchone()
        lengths = _prompt_lengths(parts, interrupts)
        room = parts.model.max_position_embeddings - config.max_new_tokens
        candidates = (verifiable, verifiable * len(parts.attempts))
        return RewriteForecast(
            num_records=num_records,
            quarantined=quarantined_by_code(parts.journal),
            unverifiable=num_records - verifiable,
            gold=gold,
            prompt=parts.example(),
            prompt_tokens={
                "mean": sum(lengths) / max(len(lengths), 1),
                "max": max(lengths, default=0),
            },
            cramped=sum(length > room for length in lengths),
            candidates=candidates,
            tokens=(candidates[0] * config.max_new_tokens, candidates[1] * config.max_new_tokens),
        )


def _prompt_lengths(parts: Prepared, interrupts: Interrupts) -> list[int]:
    """Give the tokens of each record's prompt; what cannot be made is left out."""
    lengths = []
    positions = parts.journal.db.execute(
        "SELECT position FROM records WHERE reference IS NOT NULL ORDER BY position"
    ).fetchall()
    for (position,) in positions:
        source = read_source(parts.journal, position)
        with contextlib.suppress(RecordError):
            ids = prompt_ids(parts.encoder, parts.attempts[-1], source, source.response)
            lengths.append(len(ids))
        interrupts.check()
    return lengths
