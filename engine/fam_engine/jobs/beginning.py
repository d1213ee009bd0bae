"""How every job that reads records begins: text to ids, pass 1 as one transaction, what its user should know first.

In: settings, the sources found, an open journal. Out: an encoder, limits, a room to run pass 1 in; notes about model
and data. Torch is not needed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fam_engine.config import RecordSettings, TextSettings
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import RecordError, UsageError
from fam_engine.jobs.data_files import DataFile, note_unseen_columns
from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.progress import Progress


def open_encoder(
    config: TextSettings, model: Path, *, boundary: Literal["separate", "joint"] = "separate"
) -> TextEncoder:
    """Open what turns a job's texts into ids; its user closes it."""
    return TextEncoder(
        model,
        template=config.template,
        chat_template_kwargs=config.chat_template_kwargs,
        boundary=boundary,
        parse_special=config.parse_special,
    )


def longest_sequence(limit: int, max_length: int | None) -> int:
    """Give the longest sequence of a job, tokens.

    Args:
        limit: The model's own.
        max_length: What was asked for; None: the model's own.

    Raises:
        UsageError: More was asked for than the model takes.
    """
    if max_length is not None and max_length > limit:
        message = f"max_length {max_length}, expected at most {limit}, the model's own limit"
        raise UsageError(message, code="E_MAX_LENGTH")
    return max_length or limit


@contextlib.contextmanager
def reading(
    journal: Journal, config: RecordSettings, files: tuple[DataFile, ...], progress: Progress
) -> Iterator[None]:
    """Run pass 1 in here: what it writes to the journal is kept whole or not at all."""
    progress.start("reading", None, "records")
    with storage_errors(journal.folder.parent), journal.beginning():
        note_unseen_columns(files, config.map, progress.note)
        yield


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
