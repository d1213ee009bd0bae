"""What a generating job and its forecast begin with: sources found, questions read, the user told.

In: a `GenerateConfig` and an output folder. Out: an open journal with pass 1 done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fam_engine.config import GenerateConfig
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import UsageError
from fam_engine.jobs.beginning import longest_sequence, note_about_model, open_encoder, reading
from fam_engine.jobs.generation.ingest import IngestPlan, ingest_questions
from fam_engine.jobs.generation.texts import SCHEMA
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.running import sampling_of
from fam_engine.jobs.sources import Sources, find_sources, input_key
from fam_engine.model.config import ModelConfig
from fam_engine.model.generation.requests import Sampling

# What cannot change a text, or is in the key as a hash.
_NOT_IN_KEY = {"model", "data", "out", "adapter", "download", "max_slots"}


@dataclass(frozen=True)
class Prepared:
    """A job's input, read.

    Attributes:
        journal: Of the job, with the questions.
        encoder: Text to ids.
        sources: Where the input is.
        model: The model's shape.
        sampling: How tokens are chosen.
    """

    journal: Journal
    encoder: TextEncoder
    sources: Sources
    model: ModelConfig
    sampling: Sampling


@contextlib.contextmanager
def prepared(
    config: GenerateConfig, out: Path, progress: Progress, interrupts: Interrupts
) -> Iterator[Prepared]:
    """Open the journal and run pass 1.

    Raises:
        FamEngineError: Input, model or settings that cannot be used; see the subclasses.
    """
    sampling = sampling_of(config, config.stop)
    sources = find_sources(config, config.data, config.adapter)
    model = ModelConfig.from_folder(sources.model)
    plan = _ingest_plan(config, model)
    encoder = open_encoder(config, sources.model)

    with contextlib.closing(encoder):
        key = _run_key(config, sources, encoder)
        with Journal(out, key, SCHEMA) as journal:
            with reading(journal, config, sources.files, progress):
                ingest_questions(
                    journal, encoder, plan, sources.files, interrupts.after(progress.advance)
                )
            progress.note(f"the first prompt: {_clipped(journal.get('example'))}")
            note_about_model(encoder, progress)
            yield Prepared(journal, encoder, sources, model, sampling)


def _ingest_plan(config: GenerateConfig, model: ModelConfig) -> IngestPlan:
    longest = longest_sequence(model.max_position_embeddings, config.max_length)
    if config.max_new_tokens >= longest:
        raise UsageError(
            f"--max-new-tokens {config.max_new_tokens} leaves no room for a prompt, expected less "
            f"than {longest}",
            code="E_CONFIG_VALUE",
        )
    return IngestPlan(
        max_length=longest,
        max_new_tokens=config.max_new_tokens,
        on_long=config.on_long,
        columns=config.map,
        limit=config.limit,
        seed=config.seed,
    )


def _run_key(config: GenerateConfig, sources: Sources, encoder: TextEncoder) -> dict[str, Any]:
    """Give all that texts depend on; progress belongs to exactly this."""
    settings = config.model_dump(mode="json", exclude=_NOT_IN_KEY)
    return {**input_key(sources, encoder, config.device), **settings}


def _clipped(text: str) -> str:
    shown = text if len(text) <= 320 else f"{text[:160]} ... {text[-150:]}"
    return shown.replace("\n", "\\n")
