"""The dry run: what an evaluation would take, without loading the model.

In: an `EvalConfig`. Out: an `EvalForecast`. Counts are exact, they come from the real pass 1; what the models will
write is not known, so time is that of answers that all reach `--max-new-tokens`.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fam_engine._rust_tokenize import Spool, plan_batches
from fam_engine.config import EvalConfig
from fam_engine.data.tokenizer import Ids
from fam_engine.jobs.data_files import find_files
from fam_engine.jobs.evaluation.overlap import overlap_with_training
from fam_engine.jobs.evaluation.prepare import prepared
from fam_engine.jobs.generation.trial import NUM_PROMPTS, try_writing
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import quarantined_by_code
from fam_engine.jobs.scoring.forecast import predict_seconds
from fam_engine.model.devices import choose_compute_dtype, choose_device
from fam_engine.model.generation.generator import MAX_SLOTS
from fam_engine.model.memory import default_tokens_per_batch


@dataclass(frozen=True)
class EvalForecast:
    """What a job would do, from a dry run.

    Attributes:
        models: Names of what would be compared.
        tasks: Task -> number of questions, kinds, methods.
        quarantined: Records that would be left out, by code.
        overlap: As in the summary.
        prompt_tokens: Of all prompts of written answers.
        choice_tokens: Tokens to compute for options, their prompts shared.
        most_tokens: Of all written answers, if each has --max-new-tokens.
        seconds: Time for all models, from a trial on this machine.
    """

    models: list[str]
    tasks: dict[str, dict[str, Any]]
    quarantined: dict[str, int]
    overlap: list[dict[str, Any]]
    prompt_tokens: int
    choice_tokens: int
    most_tokens: int
    seconds: float


def forecast_eval(config: EvalConfig, progress: Progress) -> EvalForecast:
    """Read the tasks and say what evaluating them would take.

    Raises:
        FamEngineError: As `run_eval` would, for data, adapters, template and tokenizer.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fam-engine-") as folder,
        Interrupts() as interrupts,
        prepared(config, Path(folder), progress, interrupts) as parts,
    ):
        db = parts.journal.db
        count, prompt_tokens = db.execute(
            "SELECT COUNT(*), COALESCE(SUM(num_prompt_tokens), 0) FROM questions "
            "WHERE first_entry IS NULL"
        ).fetchone()
        device = choose_device(config.device)
        dtype = choose_compute_dtype(
            config.compute_dtype, precision=config.precision, device=device
        )
        budget = config.max_tokens_per_batch or default_tokens_per_batch(parts.model, device, dtype)
        choice_tokens, choice_rows = _choices(parts.spool, budget)
        most_tokens = count * config.max_new_tokens
        seconds = predict_seconds(parts.model, choice_tokens, choice_rows, dtype, device)
        if prompts := _first_prompts(db):
            speed = try_writing(
                parts.model,
                parts.encoder,
                prompts,
                parts.sampling,
                num_slots=min(MAX_SLOTS, count),
                precision=config.precision,
                dtype=dtype,
                device=device,
            )
            seconds += speed.seconds(
                num_prompt_tokens=prompt_tokens,
                num_tokens=most_tokens,
                longest=config.max_new_tokens,
            )
        return EvalForecast(
            models=[one.name for one in parts.models],
            tasks=_tasks(db),
            quarantined=quarantined_by_code(parts.journal.db),
            overlap=overlap_with_training(db, find_files(config.train), config.map),
            prompt_tokens=prompt_tokens,
            choice_tokens=choice_tokens,
            most_tokens=most_tokens,
            seconds=seconds * len(parts.models),
        )


def _first_prompts(db: sqlite3.Connection) -> list[Ids]:
    query = f"""
        SELECT context FROM questions WHERE first_entry IS NULL ORDER BY position LIMIT {NUM_PROMPTS}
    """
    return [np.frombuffer(context, np.int32) for (context,) in db.execute(query)]


def _choices(spool: Spool | None, budget: int) -> tuple[int, int]:
    """Give tokens through the layers and rows through the head."""
    if spool is None:
        return 0, 0
    plan = plan_batches(spool, np.arange(len(spool), dtype=np.int64), max_tokens=budget)
    return plan.total_tokens, int(spool.index()["target_len"].sum())


def _tasks(db: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = {}
    for task, kind, is_written in db.execute(
        "SELECT task, kind, first_entry IS NULL FROM questions ORDER BY position"
    ):
        entry = tasks.setdefault(task, {"n": 0, "kinds": Counter(), "methods": Counter()})
        entry["n"] += 1
        entry["kinds"][kind] += 1
        entry["methods"]["generation" if is_written else "logprob"] += 1
    return tasks
