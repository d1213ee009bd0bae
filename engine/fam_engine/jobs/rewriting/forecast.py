"""The dry run: what rewriting would ask, and how often, without loading the model.

In: a `RewriteConfig`. Out: a `RewriteForecast`. Counts of records and prompts come from the real pass 1.
How many candidates fail is not known, so candidates and tokens are given for none and for all failing, each text as
long as `--max-new-tokens`, and so is time, which comes from a trial with two layers of the model's shape. Where a
prompt will hold the model's own first answer, the given answer stands in for it.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fam_engine.config import RewriteConfig
from fam_engine.data.tokenizer import Ids
from fam_engine.errors import RecordError
from fam_engine.jobs.generation.trial import NUM_PROMPTS, try_writing
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import quarantined_by_code
from fam_engine.jobs.rewriting.asking import prompt_ids
from fam_engine.jobs.rewriting.ingest import read_source
from fam_engine.jobs.rewriting.prepare import Prepared, prepared
from fam_engine.model.devices import choose_compute_dtype, choose_device


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
        seconds: Time for them, from a trial on this machine.
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
    seconds: tuple[float, float]


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
        prompts = _prompts(parts, interrupts)
        lengths = [length for length, _ in prompts]
        room = parts.model.max_position_embeddings - config.max_new_tokens
        candidates = (verifiable, verifiable * len(parts.attempts))
        return RewriteForecast(
            num_records=num_records,
            quarantined=quarantined_by_code(parts.journal.db),
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
            seconds=_seconds(config, parts, prompts),
        )


def _seconds(
    config: RewriteConfig, parts: Prepared, prompts: list[tuple[int, Ids | None]]
) -> tuple[float, float]:
    """Predict the time if every first candidate is verified, and if none is."""
    if not prompts:
        return 0.0, 0.0
    device = choose_device(config.device)
    speed = try_writing(
        parts.model,
        parts.encoder,
        [ids for _, ids in prompts if ids is not None],
        parts.attempts[-1].sampling,
        num_slots=min(config.max_slots, len(prompts)),
        precision=config.precision,
        dtype=choose_compute_dtype(config.compute_dtype, precision=config.precision, device=device),
        device=device,
    )
    # One attempt after the other, each with all records that still lack a text.
    once = speed.seconds(
        num_prompt_tokens=sum(length for length, _ in prompts),
        num_tokens=len(prompts) * config.max_new_tokens,
        longest=config.max_new_tokens,
    )
    return once, once * len(parts.attempts)


def _prompts(parts: Prepared, interrupts: Interrupts) -> list[tuple[int, Ids | None]]:
    """Give the length of each record's prompt, and of the first also the ids; what cannot be made is left out."""
    prompts: list[tuple[int, Ids | None]] = []
    positions = parts.journal.db.execute(
        "SELECT position FROM records WHERE reference IS NOT NULL ORDER BY position"
    ).fetchall()
    for (position,) in positions:
        source = read_source(parts.journal, position)
        with contextlib.suppress(RecordError):
            ids = prompt_ids(parts.encoder, parts.attempts[-1], source, source.response)
            prompts.append((len(ids), ids if len(prompts) < NUM_PROMPTS else None))
        interrupts.check()
    return prompts
