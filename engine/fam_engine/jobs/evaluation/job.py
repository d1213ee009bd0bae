"""The evaluation from its settings to its files.

In: an `EvalConfig` and somebody to tell about progress. Out: the files of the output folder and a `JobOutcome`. The
base model is loaded once and each adapter put on it in turn. Whatever stops the job, the same command goes on from
there; given with more adapters it computes those alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fam_engine.config import EvalConfig
from fam_engine.data.files import write_json_whole
from fam_engine.jobs.data_files import find_files
from fam_engine.jobs.evaluation import choices, texts
from fam_engine.jobs.evaluation.files import write_left_out, write_samples
from fam_engine.jobs.evaluation.models import EvaluatedModel
from fam_engine.jobs.evaluation.overlap import overlap_with_training
from fam_engine.jobs.evaluation.prepare import Prepared, prepared
from fam_engine.jobs.evaluation.report import write_eval_report
from fam_engine.jobs.evaluation.samples import Sample, keep_samples, read_samples, spent
from fam_engine.jobs.evaluation.summary import summarize
from fam_engine.jobs.generation.texts import TextMaker, make_told
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal, check_unclaimed, storage_errors
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.outputs import OUTPUTS as ALL_OUTPUTS
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import left_out
from fam_engine.jobs.running import judging_settings, load_told, peak_memory
from fam_engine.jobs.scoring.entries import EntryScorer
from fam_engine.jobs.sources import tokens_per_batch
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.generator import Generator
from fam_engine.model.loading import with_adapter

OUTPUTS = ALL_OUTPUTS["eval"]


def run_eval(
    config: EvalConfig, progress: Progress, *, decoder: Decoder | None = None
) -> JobOutcome:
    """Evaluate, or go on where an earlier run of the same job stopped.

    Args:
        config: Settings.
        progress: Who is told.
        decoder: The base model, if it is loaded already.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; what is done is kept.
    """
    watch = Stopwatch()
    check_unclaimed(config.out, OUTPUTS)
    with (
        Interrupts() as interrupts,
        prepared(config, config.out, progress, interrupts) as parts,
    ):
        # By key: two folders may hold the same adapter.
        missing = {one.key: one for one in parts.models if spent(parts.journal, one) is None}
        if missing:
            with parts.journal.beginning():
                decoder = decoder or load_told(config, parts.sources, progress)
            for tested in missing.values():
                _Evaluation(config, parts, tested, progress, interrupts).run(decoder)
        progress.start("writing", None, "files")
        summary = _write_outputs(config, parts, watch)
        return JobOutcome(summary, summary["records"]["quarantined"])


class _Evaluation:
    """The evaluation of one model."""

    def __init__(
        self,
        config: EvalConfig,
        parts: Prepared,
        tested: EvaluatedModel,
        progress: Progress,
        interrupts: Interrupts,
    ) -> None:
        self._config = config
        self._parts = parts
        self._tested = tested
        self._progress = progress
        self._interrupts = interrupts
        self._advance = interrupts.after(progress.advance)
        journal = parts.journal
        self._folder: Path = journal.folder / "models" / tested.key[:16]
        self._key = {**journal.get("key"), "adapter": tested.key}

    def run(self, base: Decoder) -> None:
        """Answer every question, judge the answers, and keep them in the job's journal."""
        watch = Stopwatch()
        journal, adapter = self._parts.journal, self._tested.adapter
        with storage_errors(self._config.out):
            self._folder.mkdir(parents=True, exist_ok=True)
        decoder = base if adapter is None else with_adapter(base, adapter)
        with (
            choices.open_choices(self._folder / "choices", self._key, journal.db) as scores,
            texts.open_texts(self._folder / "texts", self._key, journal.db) as written,
        ):
            if self._parts.spool is not None:
                self._score(scores, decoder)
            if texts.num_missing(written):
                self._generate(written, decoder)
            self._judge(written)
            keep_samples(
                journal,
                self._tested,
                texts.answers(written),
                choices.scored(scores, journal.db),
                {"seconds": watch.seconds()},
            )
        shutil.rmtree(self._folder, ignore_errors=True)

    def _score(self, journal: Journal, decoder: Decoder) -> None:
        spool = self._parts.spool
        assert spool is not None
        budget = tokens_per_batch(self._config.max_tokens_per_batch, decoder)
        self._progress.start(f"{self._tested.name}: scoring choices", None, "tokens")
        EntryScorer(decoder, journal, spool).run(budget, self._advance)

    def _generate(self, journal: Journal, decoder: Decoder) -> None:
        label = f"{self._tested.name}: answering"
        self._progress.start(label, texts.num_missing(journal), "questions")
        generator = Generator(decoder, self._parts.encoder)
        maker = TextMaker(generator, journal, self._parts.sampling, num_samples=1)
        make_told(maker, journal, self._progress, self._interrupts)

    def _judge(self, journal: Journal) -> None:
        if count := texts.num_unjudged(journal):
            self._progress.start(f"{self._tested.name}: judging", count, "answers")
            texts.judge_texts(journal, self._parts.journal.db, self._advance)


def _write_outputs(config: EvalConfig, parts: Prepared, watch: Stopwatch) -> dict[str, Any]:
    out, journal = config.out, parts.journal
    models = {
        one.name: list(read_samples(journal.db, one, config.choice_metric)) for one in parts.models
    }
    with storage_errors(out):
        write_samples(out / "samples.parquet", models)
        quarantined = write_left_out(out / "quarantine.jsonl", journal.db, models)
        summary = {
            "records": _records(parts, models, quarantined),
            "models": [_model(parts, one) for one in parts.models],
            **summarize(models),
            "overlap": overlap_with_training(journal.db, find_files(config.train), config.map),
            "judging": judging_settings(has_code=_has_code(models)),
            "performance": _performance(watch),
            "settings": {
                **config.model_dump(mode="json"),
                "revision": parts.sources.revision,
            },
            "key": journal.get("key"),
        }
        write_eval_report(out / "report.html", summary, models)
        write_json_whole(out / "summary.json", summary)
    return summary


def _has_code(models: dict[str, list[Sample]]) -> bool:
    return any(one.kind == "code" for samples in models.values() for one in samples)


def _records(
    parts: Prepared, models: dict[str, list[Sample]], quarantined: dict[str, int]
) -> dict[str, Any]:
    """Count records: what was read is what has a verdict from every model, and what was left out."""
    asked = parts.journal.get("ingested")["questions"]
    failed = {one.position for samples in models.values() for one in samples if one.code}
    return {
        "read": asked - len(failed) + sum(quarantined.values()),
        "evaluated": asked - len(failed),
        **left_out(quarantined),
    }


def _model(parts: Prepared, tested: EvaluatedModel) -> dict[str, Any]:
    took = spent(parts.journal, tested) or {}
    return {
        "name": tested.name,
        "adapter": None if tested.adapter is None else str(tested.adapter),
        "sha256": None if tested.adapter is None else tested.key,
        **took,
    }


def _performance(watch: Stopwatch) -> dict[str, float]:
    return {
        "seconds_total": watch.seconds(),
        **peak_memory(),
    }
