"""What an evaluation and its forecast begin with: sources found, questions read, the user told.

In: an `EvalConfig` and an output folder. Out: an open journal with pass 1 done, and what is to be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fam_engine._rust_tokenize import Spool
from fam_engine.config import EvalConfig
from fam_engine.data.reading import hash_file
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import UsageError
from fam_engine.jobs.beginning import note_about_model, open_encoder, reading
from fam_engine.jobs.data_files import check_distinct, find_files
from fam_engine.jobs.evaluation import ingest, samples
from fam_engine.jobs.evaluation.few_shot import NO_EXAMPLES, Examples, read_examples
from fam_engine.jobs.evaluation.ingest import IngestPlan, ingest_tasks
from fam_engine.jobs.evaluation.models import EvaluatedModel, find_models
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.running import sampling_of
from fam_engine.jobs.sources import Sources, find_sources, input_key
from fam_engine.model.config import ModelConfig
from fam_engine.model.generation.requests import Sampling

_SCHEMA: Final = ingest.SCHEMA + samples.SCHEMA
# What cannot change an answer, or is in the key as a hash. Models are kept apart from each other, so that more of them
# can join later.
_NOT_IN_KEY: Final = {
    "model",
    "data",
    "out",
    "adapter",
    "base",
    "train",
    "choice_metric",
    "few_shot_file",
    "max_tokens_per_batch",
    "download",
}


@dataclass(frozen=True)
class Prepared:
    """A job's input, read.

    Attributes:
        journal: Of the job, with the questions.
        spool: The options to be scored, if there are any.
        encoder: Text to ids.
        sources: Where the input is.
        model: The model's shape.
        models: What is compared.
        sampling: How tokens of written answers are chosen.
    """

    journal: Journal
    spool: Spool | None
    encoder: TextEncoder
    sources: Sources
    model: ModelConfig
    models: tuple[EvaluatedModel, ...]
    sampling: Sampling


@contextlib.contextmanager
def prepared(
    config: EvalConfig, out: Path, progress: Progress, interrupts: Interrupts
) -> Iterator[Prepared]:
    """Open the journal and run pass 1.

    Raises:
        FamEngineError: Input, model, adapter or settings that cannot be used; see the subclasses.
    """
    sampling = sampling_of(config, config.stop)
    sources = find_sources(config, config.data, None)
    check_distinct(sources.files)  # else its questions would count twice
    model = ModelConfig.from_folder(sources.model)
    models = find_models(config.adapter, sources.model, with_base=config.base)
    find_files(config.train)  # a name mistyped should be said now
    plan = _ingest_plan(config, model)
    encoder = open_encoder(config, sources.model)

    with contextlib.closing(encoder):
        key = _run_key(config, sources, encoder)
        with Journal(out, key, _SCHEMA) as journal:
            with reading(journal, config, sources.files, progress):
                spool = ingest_tasks(
                    journal, encoder, plan, sources.files, interrupts.after(progress.advance)
                )
            for note in shown_tasks(journal):
                progress.note(note)
            note_about_model(encoder, progress)
            yield Prepared(journal, spool, encoder, sources, model, models, sampling)


def _ingest_plan(config: EvalConfig, model: ModelConfig) -> IngestPlan:
    longest = model.max_position_embeddings
    if config.max_new_tokens >= longest:
        raise UsageError(
            f"--max-new-tokens {config.max_new_tokens} leaves no room for a question, expected less "
            f"than {longest}",
            code="E_CONFIG_VALUE",
        )
    return IngestPlan(
        max_length=longest,
        max_new_tokens=config.max_new_tokens,
        choice_by=config.choice_by,
        examples=_examples(config),
        columns=config.map,
        limit=config.limit,
        seed=config.seed,
    )


def _examples(config: EvalConfig) -> Examples:
    if config.few_shot_file is None:
        return NO_EXAMPLES
    (file,) = find_files([config.few_shot_file])
    return read_examples(file, config.map, config.few_shot)


def _run_key(config: EvalConfig, sources: Sources, encoder: TextEncoder) -> dict[str, Any]:
    """Give all that an answer of the base model depends on; progress belongs to exactly this."""
    settings = config.model_dump(mode="json", exclude=_NOT_IN_KEY)
    examples = find_files([config.few_shot_file])[0] if config.few_shot_file else None
    return {
        **input_key(sources, encoder, config.device),
        **settings,
        "few_shot_file": hash_file(examples.path) if examples else None,
    }


def shown_tasks(journal: Journal) -> list[str]:
    """Show how each task was understood: how many questions, how judged, and its first prompt."""
    query = """
        SELECT task, COUNT(*), GROUP_CONCAT(DISTINCT kind), SUM(first_entry IS NULL), prompt, answer,
               MIN(position) AS first
        FROM questions GROUP BY task ORDER BY first
    """
    notes = []
    for task, count, kinds, num_written, prompt, answer, _ in journal.db.execute(query):
        how = "answered by writing" if num_written else "chosen by log-prob"
        if 0 < num_written < count:
            how = f"{num_written:,} answered by writing, the others chosen by log-prob"
        gold = "" if answer is None else f"  gold: {_clipped(answer)}"
        notes.append(
            f"{task}: {count:,} questions ({kinds.replace(',', ', ')}), {how}\n"
            f"  {_clipped(prompt)}[[...]]{gold}"
        )
    return notes


def _clipped(text: str) -> str:
    shown = text if len(text) <= 200 else f"{text[:90]} ... {text[-100:]}"
    return shown.replace("\n", "\\n")
