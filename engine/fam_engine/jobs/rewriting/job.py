"""The rewriting job from its settings to its files.

In: a `RewriteConfig` and somebody to tell about progress. Out: the files of the output folder and a `JobOutcome`.
Whatever stops the job, the same command goes on from there, and the same candidates come out.
"""

from __future__ import annotations

from typing import Any

from fam_engine.config import RewriteConfig
from fam_engine.data.files import write_json_whole
from fam_engine.data.json_lines import write_json_lines
from fam_engine.jobs.generation.texts import TextMaker, make_told
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal, check_unclaimed, storage_errors
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.outputs import OUTPUTS as ALL_OUTPUTS
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import read_quarantine, write_quarantine
from fam_engine.jobs.rewriting.asking import Attempt
from fam_engine.jobs.rewriting.attempts import Attempts
from fam_engine.jobs.rewriting.files import (
    CANDIDATES_SCHEMA,
    Writer,
    candidate_rows,
    rewritten_records,
)
from fam_engine.jobs.rewriting.prepare import Prepared, prepared
from fam_engine.jobs.rewriting.summary import has_code, summarize_rewriting
from fam_engine.jobs.running import (
    finished_summary,
    judging_settings,
    load_told,
    settings_told,
    writing_performance,
)
from fam_engine.jobs.scoring.files import write_table
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.generator import Generator

OUTPUTS = ALL_OUTPUTS["rewrite"]
# Candidates judged between two commits: code is judged in child processes, some seconds each at worst.
_JUDGED_AT_ONCE = 16


def run_rewrite(config: RewriteConfig, progress: Progress) -> JobOutcome:
    """Rewrite a job's answers, or go on where an earlier run of the same job stopped.

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
            _Run(config, parts, decoder, progress, interrupts).make_all()
            summary = _write_outputs(config, parts, decoder, watch)
            with parts.journal.commit():
                parts.journal.put("finished", summary)
        return JobOutcome(summary, summary["records"]["quarantined"])


class _Run:
    """Makes the attempts that are not made yet."""

    def __init__(
        self,
        config: RewriteConfig,
        parts: Prepared,
        decoder: Decoder,
        progress: Progress,
        interrupts: Interrupts,
    ) -> None:
        self._parts = parts
        self._attempts = Attempts(
            config, parts.journal, parts.encoder, parts.model.max_position_embeddings
        )
        self._generator = Generator(decoder, parts.encoder, max_slots=config.max_slots)
        self._progress = progress
        self._interrupts = interrupts

    def make_all(self) -> None:
        """Make them, in order."""
        for attempt in self._parts.attempts:
            if self._attempts.is_done(attempt):
                continue
            with self._attempts.questions(attempt) as own:
                self._write_texts(attempt, own)
                self._judge_texts(attempt, own)
            self._attempts.finish(attempt)

    def _write_texts(self, attempt: Attempt, own: Journal) -> None:
        maker = TextMaker(self._generator, own, attempt.sampling, 1)
        last = self._parts.attempts[-1].number
        label = f"attempt {attempt.number} of 0 to {last}"
        self._progress.start(label, len(maker.remaining()), "records")
        make_told(maker, self._parts.journal, self._progress, self._interrupts)

    def _judge_texts(self, attempt: Attempt, own: Journal) -> None:
        positions = self._attempts.unjudged(attempt, own)
        self._progress.start(f"judging attempt {attempt.number}", len(positions), "candidates")
        for start in range(0, len(positions), _JUDGED_AT_ONCE):
            some = positions[start : start + _JUDGED_AT_ONCE]
            self._attempts.judge(attempt, own, some)
            self._progress.advance(len(some))
            self._interrupts.check()


def _write_outputs(
    config: RewriteConfig, parts: Prepared, decoder: Decoder, watch: Stopwatch
) -> dict[str, Any]:
    out, journal = config.out, parts.journal
    adapter = None if config.adapter is None else str(config.adapter)
    writer = Writer(config.method, config.model, adapter, config.seed)
    with storage_errors(out):
        write_json_lines(out / "rewritten.jsonl", rewritten_records(journal, writer))
        write_table(out / "candidates.parquet", CANDIDATES_SCHEMA, candidate_rows(journal))
        quarantined = write_quarantine(out / "quarantine.jsonl", read_quarantine(journal.db))
        summary = {
            **summarize_rewriting(journal, quarantined),
            "judging": judging_settings(has_code=has_code(journal)),
            "performance": writing_performance(journal, watch),
            "settings": settings_told(config, parts.sources, decoder),
            "key": journal.get("key"),
        }
        write_json_whole(out / "summary.json", summary)
    return summary
