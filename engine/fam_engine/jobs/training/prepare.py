"""What a training job and its forecast begin with: sources found, records read and split, the user told.

In: a `TrainConfig` and an output folder. Out: an open journal and the examples. Pass 1 is scoring's own; validation
records have a pass, a spool and a journal of their own beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fam_engine.config import TrainConfig
from fam_engine.data.reading import hash_file
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError
from fam_engine.jobs.beginning import longest_sequence, note_about_model, open_encoder, shown_form
from fam_engine.jobs.data_files import DataFile, find_files, note_unseen_columns
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.scoring import ingest
from fam_engine.jobs.scoring.ingest import IngestPlan, ingest_records
from fam_engine.jobs.sources import Sources, find_sources, input_key
from fam_engine.jobs.training.crashes import open_validation
from fam_engine.jobs.training.examples import (
    Examples,
    assistant_turns,
    check_examples,
    find_examples,
    is_far_off,
    split_off,
)
from fam_engine.model.config import ModelConfig

# What cannot change the adapter, or is in the key as a hash.
_NOT_IN_KEY = {
    "model",
    "data",
    "out",
    "download",
    "validation",
    "tensorboard",
    "save_every",
    "nproc",
}
_ONE_MAP: Final = (
    "--map is of --data and --validation alike: give both files the same columns, or take "
    "--validation-share instead"
)


@dataclass(frozen=True)
class Prepared:
    """A job's input, read.

    Attributes:
        journal: Of the job.
        encoder: Text to ids.
        sources: Where the input is.
        train: What to train on.
        validation: What to judge by; None: nothing.
        run: Name of the run: a hash of its key.
    """

    journal: Journal
    encoder: TextEncoder
    sources: Sources
    train: Examples
    validation: Examples | None
    run: str


@contextlib.contextmanager
def prepared(
    config: TrainConfig, out: Path, progress: Progress, interrupts: Interrupts
) -> Iterator[Prepared]:
    """Open the journal, run pass 1, split.

    Raises:
        FamEngineError: Input, model or settings that cannot be used; see the subclasses.
    """
    sources = find_sources(config, config.data, None)
    encoder = open_encoder(config, sources.model)
    with contextlib.closing(encoder):
        reader = _Reader(config, sources, encoder, progress, interrupts)
        key = run_key(config, sources, encoder)
        with Journal(out, key, ingest.SCHEMA) as journal:
            with storage_errors(out), journal.beginning():
                train, validation = reader.examples(journal)
            yield Prepared(journal, encoder, sources, train, validation, _digest(key))


def run_key(config: TrainConfig, sources: Sources, encoder: TextEncoder) -> dict[str, Any]:
    """Give all that the adapter depends on; progress belongs to exactly this."""
    settings = config.model_dump(mode="json", exclude=_NOT_IN_KEY)
    validation = find_files([config.validation])[0] if config.validation else None
    return {
        **input_key(sources, encoder, config.device),
        **settings,
        "validation": hash_file(validation.path) if validation else None,
    }


class _Reader:
    """Runs pass 1 for training and validation records."""

    def __init__(
        self,
        config: TrainConfig,
        sources: Sources,
        encoder: TextEncoder,
        progress: Progress,
        interrupts: Interrupts,
    ) -> None:
        self._config = config
        self._sources = sources
        self._encoder = encoder
        self._progress = progress
        self._advance = interrupts.after(progress.advance)
        limit = ModelConfig.from_folder(sources.model).max_position_embeddings
        self._max_length = longest_sequence(limit, config.max_length)

    def examples(self, journal: Journal) -> tuple[Examples, Examples | None]:
        """Give what to train on and what to judge by."""
        config = self._config
        train = self._read(journal, self._sources.files, limit=config.limit)
        validation: Examples | None = None
        if config.validation_share is not None:
            wanted = config.validation_share * len(train.entries)
            train, validation = split_off(train, config.validation_share, seed=config.seed)
            self._warn_of_size(len(validation.entries), wanted)
        elif config.validation is not None:
            validation = self._read_validation(journal, config.validation)
            self._warn_of_overlap(train, validation)
        check_examples(train, config.data)
        note_about_model(self._encoder, self._progress)
        return train, validation

    def _read(
        self, journal: Journal, files: tuple[DataFile, ...], *, limit: int | None
    ) -> Examples:
        config = self._config
        plan = IngestPlan(
            max_length=self._max_length,
            on_long=config.on_long,
            columns=config.map,
            limit=limit,
            train_on=config.train_on,
            expand=assistant_turns if config.train_on == "all-assistant" else None,
        )
        self._progress.start("reading", None, "records")
        note_unseen_columns(files, config.map, self._progress.note)
        spool = ingest_records(journal, self._encoder, plan, files, self._advance)
        for form in journal.get("forms"):
            self._progress.note(shown_form(form))
        return find_examples(journal, spool)

    def _read_validation(self, journal: Journal, name: str) -> Examples:
        """Read the validation file; what it had to leave out joins the job's quarantine."""
        with open_validation(journal) as own:
            try:
                examples = self._read(own, find_files([name]), limit=None)
            except InputError as error:
                # There is one --map: what the error says of it would spoil the data.
                if any(code in error.message for code in ("E_RECORD_FORM", "E_RECORD_FIELD")):
                    error.hint = _ONE_MAP
                raise
            bad = own.db.execute(
                "SELECT file, line, offset, code, reason FROM quarantine ORDER BY number"
            ).fetchall()
            num_records = own.get("ingested")["records"]
        if journal.get("validation_records") is None:
            with journal.commit():
                journal.quarantine(bad)
                journal.put("validation_records", num_records)
        check_examples(examples, [name])
        return examples

    def _warn_of_size(self, num_aside: int, wanted: float) -> None:
        if is_far_off(num_aside, wanted):
            self._progress.note(
                f"{num_aside:,} examples are set aside for validation where {wanted:,.0f} were asked for: those of "
                "one question stay together, and some questions have many (--validation FILE gives others)"
            )

    def _warn_of_overlap(self, train: Examples, validation: Examples) -> None:
        known, asked = set(train.groups), set(validation.groups)
        if common := known & asked:
            self._progress.note(
                f"{len(common)} of {len(asked)} validation questions are also trained on"
            )


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
