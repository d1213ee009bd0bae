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
from fam_engine.errors import RecordError
from fam_engine.jobs.data_files import note_unseen_columns
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.scoring.entries import SCHEMA
from fam_engine.jobs.scoring.in_context import missing_in_context
from fam_engine.jobs.scoring.ingest import ingest_records
from fam_engine.jobs.scoring.sources import Sources, find_sources, ingest_plan, run_key
from fam_engine.model.config import ModelConfig


@contextlib.contextmanager
def prepared(
    config: ScoreConfig, out: Path, progress: Progress, interrupts: Interrupts
) -> Iterator[tuple[Journal, Spool, TextEncoder, Sources]]:
    """Open the journal and run pass 1."""
    sources = find_sources(config, config.data, config.adapter)
    model = ModelConfig.from_folder(sources.model)
    encoder = TextEncoder(
        sources.model,
        template=config.template,
        chat_template_kwargs=config.chat_template_kwargs,
        boundary=config.boundary,
        parse_special=config.parse_special,
    )

    with contextlib.closing(encoder):
        key = run_key(config, sources, encoder)
        with Journal(out, key, SCHEMA) as journal:
            progress.start("reading", None, "records")
            plan = ingest_plan(config, model)
            with storage_errors(out), journal.beginning():
                note_unseen_columns(sources.files, config.map, progress.note)
                spool = ingest_records(
                    journal, encoder, plan, sources.files, interrupts.after(progress.advance)
                )
            for form in journal.get("forms"):
                progress.note(shown_form(form))
            note_about_model(encoder, progress)
            if config.in_context and (missing := missing_in_context(journal.db, config.in_context)):
                progress.note(missing)
            yield journal, spool, encoder, sources


def note_about_model(encoder: TextEncoder, progress: Progress) -> None:
    """Tell the user what is unusual about the model's template and tokenizer."""
    for note in (opened_otherwise(encoder), encoder.read_otherwise):
        if note:
            progress.note(note)


def opened_otherwise(encoder: TextEncoder) -> str | None:
    """Say it where the template writes a plain answer after something else than it asks for one with.

    So it is with models that think first: a plain answer straight after their generation prompt is one they would not
    give. None: it does not, or the user has decided on thoughts.
    """
    thinking, renderer = "enable_thinking", encoder.renderer
    if renderer is None or encoder.template is None or thinking in encoder.template.kwargs:
        return None
    try:
        asked, given = renderer.openings()
    except RecordError:
        return None  # the records will tell
    if asked.strip() == given.strip():
        return None
    note = f"the chat template asks for an answer with {asked!r}, but writes a plain one after {given!r}"
    if renderer.reads(thinking):
        note += f"; for answers without thoughts give --chat-template-kwargs '{{\"{thinking}\": false}}'"
    return note


def shown_form(form: dict[str, str]) -> str:
    """Show how a file was understood: its form, and one example with the scored part marked."""
    context, response = (_clipped(form[name]) for name in ("context", "response"))
    return f"{form['file']}: {form['form']}\n  {context}[[{response}]]"


def _clipped(text: str) -> str:
    shown = text if len(text) <= 160 else f"{text[:80]} ... {text[-70:]}"
    return shown.replace("\n", "\\n")
