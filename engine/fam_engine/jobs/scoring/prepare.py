"""What a scoring job and its forecast begin with: sources found, records read, the user told.

In: a `ScoreConfig` and an output folder. Out: an open journal with pass 1 done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fam_engine._rust_tokenize import Spool
from fam_engine.config import ScoreConfig
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.beginning import (
    longest_sequence,
    note_about_model,
    open_encoder,
    reading,
    shown_form,
)
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.scoring.entries import SCHEMA
from fam_engine.jobs.scoring.in_context import missing_in_context
from fam_engine.jobs.scoring.ingest import IngestPlan, ingest_records
from fam_engine.jobs.scoring.run_key import run_key
from fam_engine.jobs.sources import Sources, find_sources
from fam_engine.model.config import ModelConfig


@contextlib.contextmanager
def prepared(
    config: ScoreConfig, out: Path, progress: Progress, interrupts: Interrupts
) -> Iterator[tuple[Journal, Spool, TextEncoder, Sources]]:
    """Open the journal and run pass 1."""
    sources = find_sources(config, config.data, config.adapter)
    plan = _ingest_plan(config, ModelConfig.from_folder(sources.model))
    encoder = open_encoder(config, sources.model, boundary=config.boundary)

    with contextlib.closing(encoder):
        key = run_key(config, sources, encoder)
        with Journal(out, key, SCHEMA) as journal:
            with reading(journal, config, sources.files, progress):
                spool = ingest_records(
                    journal, encoder, plan, sources.files, interrupts.after(progress.advance)
                )
            for form in journal.get("forms"):
                progress.note(shown_form(form))
            note_about_model(encoder, progress)
            if config.in_context and (missing := missing_in_context(journal.db, config.in_context)):
                progress.note(missing)
            yield journal, spool, encoder, sources


def _ingest_plan(config: ScoreConfig, model: ModelConfig) -> IngestPlan:
    """Give pass 1 its orders."""
    return IngestPlan(
        max_length=longest_sequence(model.max_position_embeddings, config.max_length),
        on_long=config.on_long,
        ifd=config.ifd,
        in_context=config.in_context,
        columns=config.map,
        limit=config.limit,
    )
