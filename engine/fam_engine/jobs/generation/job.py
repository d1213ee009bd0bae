"""The generating job from its settings to its files.

In: a `GenerateConfig` and somebody to tell about progress. Out: the files of the output folder and a `JobOutcome`.
Whatever stops the job, the same command goes on from there, and the same texts come out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fam_engine.config import GenerateConfig
from fam_engine.data.files import write_json_whole
from fam_engine.data.json_lines import write_json_lines
from fam_engine.jobs.generation.files import Origin, count_texts, generated_records
from fam_engine.jobs.generation.judging import has_code, judge_texts, num_unjudged
from fam_engine.jobs.generation.prepare import Prepared, prepared
from fam_engine.jobs.generation.texts import TextMaker, make_told
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import check_unclaimed, storage_errors
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.outputs import OUTPUTS as ALL_OUTPUTS
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import read_quarantine, write_quarantine
from fam_engine.jobs.running import (
    finished_summary,
    judging_settings,
    load_told,
    settings_told,
    writing_performance,
)
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.generator import Generator

OUTPUTS = ALL_OUTPUTS["generate"]


def run_generate(config: GenerateConfig, progress: Progress) -> JobOutcome:
    """Generate answers to a job's records, or go on where an earlier run of it stopped.

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
        summary = finished_summary(parts.journal, config.out, OUTPUTS, progress)
        if summary is None:
            with parts.journal.beginning():
                decoder = load_told(config, parts.sources, progress)
            _generate(config, parts, decoder, progress, interrupts)
            _judge(parts, progress, interrupts)
            summary = _write_outputs(config, parts, decoder, watch)
            with parts.journal.commit():
                parts.journal.put("finished", summary)
        return JobOutcome(summary, summary["records"]["quarantined"])


def _generate(
    config: GenerateConfig,
    parts: Prepared,
    decoder: Decoder,
    progress: Progress,
    interrupts: Interrupts,
) -> None:
    journal = parts.journal
    generator = Generator(decoder, parts.encoder, max_slots=config.max_slots)
    maker = TextMaker(generator, journal, parts.sampling, config.samples)
    progress.start("generating", len(maker.remaining()), "records")
    make_told(maker, journal, progress, interrupts)


def _judge(parts: Prepared, progress: Progress, interrupts: Interrupts) -> None:
    progress.start("judging", num_unjudged(parts.journal), "answers")
    judge_texts(parts.journal, interrupts.after(progress.advance))


def _write_outputs(
    config: GenerateConfig, parts: Prepared, decoder: Decoder, watch: Stopwatch
) -> dict[str, Any]:
    out, journal = config.out, parts.journal
    origin = Origin(
        source=config.source or _model_name(config),
        model=config.model,
        adapter=None if config.adapter is None else str(config.adapter),
        seed=config.seed,
    )
    with storage_errors(out):
        write_json_lines(out / "generated.jsonl", generated_records(journal, origin))
        quarantined = write_quarantine(out / "quarantine.jsonl", read_quarantine(journal.db))
        summary = {
            **count_texts(journal, quarantined),
            "judging": judging_settings(has_code=has_code(journal)),
            "performance": writing_performance(journal, watch),
            "settings": {
                **settings_told(config, parts.sources, decoder),
                "source": origin.source,
            },
            "key": journal.get("key"),
        }
        write_json_whole(out / "summary.json", summary)
    return summary


def _model_name(config: GenerateConfig) -> str:
    """Name the writer: the model's folder, and the adapter's after a plus."""
    names = [config.model, *([str(config.adapter)] if config.adapter else [])]
    return "+".join(Path(name).resolve().name for name in names)
