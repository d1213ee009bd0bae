"""What a rewriting job and its forecast begin with: sources found, template checked, records read, the user told.

In: a `RewriteConfig` and an output folder. Out: an open journal with pass 1 done.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fam_engine.config import RewriteConfig
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import RecordError
from fam_engine.jobs.beginning import note_about_model, open_encoder, reading, shown_form
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.rewriting.asking import Attempt, plan_attempts, prompt_ids
from fam_engine.jobs.rewriting.attempts import SCHEMA
from fam_engine.jobs.rewriting.ingest import ingest_records, read_source
from fam_engine.jobs.rewriting.prompts import load_prompt
from fam_engine.jobs.sources import Sources, find_sources, input_key
from fam_engine.model.config import ModelConfig

# What cannot change a candidate, or is in the key as a hash.
_NOT_IN_KEY = {"model", "data", "out", "adapter", "download", "prompt_file", "max_slots"}
# Stands in a prompt that is only shown for the first answer the model has not given yet.
NOT_YET = "(the model's own first answer)"


@dataclass(frozen=True)
class Prepared:
    """A job's input, read.

    Attributes:
        journal: Of the job, with the records.
        encoder: Text to ids.
        sources: Where the input is.
        model: The model's shape.
        attempts: What is to be tried, in order.
    """

    journal: Journal
    encoder: TextEncoder
    sources: Sources
    model: ModelConfig
    attempts: list[Attempt]

    def example(self) -> str | None:
        """Give the method's first prompt as the model sees it; None if nothing can be verified."""
        row = self.journal.db.execute(
            "SELECT position FROM records WHERE reference IS NOT NULL ORDER BY position LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        source = read_source(self.journal, row[0])
        try:
            ids = prompt_ids(self.encoder, self.attempts[-1], source, NOT_YET)
        except RecordError as error:
            return f"({error.reason})"
        return self.encoder.tokenizer.decode(ids)


@contextlib.contextmanager
def prepared(
    config: RewriteConfig, out: Path, progress: Progress, interrupts: Interrupts
) -> Iterator[Prepared]:
    """Open the journal and run pass 1.

    Raises:
        FamEngineError: Input, model, template or settings that cannot be used; see the subclasses.
    """
    template = load_prompt(config.method, config.prompt_file)
    attempts = plan_attempts(config, template)
    sources = find_sources(config, config.data, config.adapter)
    model = ModelConfig.from_folder(sources.model)
    encoder = open_encoder(config, sources.model)

    with contextlib.closing(encoder):
        asked = template.text if template else ""
        key = _run_key(config, sources, encoder, asked)
        with Journal(out, key, SCHEMA) as journal:
            with reading(journal, config, sources.files, progress):
                ingest_records(
                    journal,
                    encoder,
                    sources.files,
                    columns=config.map,
                    limit=config.limit,
                    advance=interrupts.after(progress.advance),
                )
            for form in journal.get("forms"):
                progress.note(shown_form(form))
            note_about_model(encoder, progress)
            yield Prepared(journal, encoder, sources, model, attempts)


def _run_key(
    config: RewriteConfig, sources: Sources, encoder: TextEncoder, asked: str
) -> dict[str, Any]:
    """Give all that candidates depend on; progress belongs to exactly this."""
    return {
        **input_key(sources, encoder, config.device),
        **config.model_dump(mode="json", exclude=_NOT_IN_KEY),
        "prompt_sha256": hashlib.sha256(asked.encode()).hexdigest(),
    }
