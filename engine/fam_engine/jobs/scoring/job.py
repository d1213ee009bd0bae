"""The scoring job from its settings to its files.

In: a `ScoreConfig` and somebody to tell about progress. Out: the files of the output folder and a `JobOutcome`.
Whatever stops the job, the same command goes on from there, and the table comes out the same to the last bit.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fam_engine._rust_tokenize import Spool
from fam_engine.config import ScoreConfig
from fam_engine.data.files import write_json_whole
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal, check_unclaimed, storage_errors
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.outputs import OUTPUTS as ALL_OUTPUTS
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import left_out, read_quarantine, write_quarantine
from fam_engine.jobs.running import (
    describe,
    finished_summary,
    peak_memory,
    settings_told,
)
from fam_engine.jobs.scoring.entries import EntryScorer
from fam_engine.jobs.scoring.files import (
    scores_schema,
    write_scores,
    write_tokens,
)
from fam_engine.jobs.scoring.prepare import prepared
from fam_engine.jobs.scoring.report import write_score_report
from fam_engine.jobs.scoring.sharing.gathering import gather
from fam_engine.jobs.sources import Sources, open_model, tokens_per_batch
from fam_engine.jobs.spending import Spending, spent_so_far
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.measure.summary import summarize

# What a finished job leaves; the tokens come on top where asked for.
OUTPUTS = ALL_OUTPUTS["score"]
_TOKENS = "tokens.parquet"
_NUMBERS = ("nll_sum", "nll_mean", "perplexity", "bits_per_byte", "rank_mean", "surprising_rate")
_IF_MEASURED = ("ifd", "in_context_nll_mean")
_SUMMARIZED = ("source", "group", "correct", "flags", "num_response_tokens", *_NUMBERS)


def run_score(config: ScoreConfig, progress: Progress) -> JobOutcome:
    """Score a job's records, or go on where an earlier run of the same job stopped.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; what is done is kept.
    """
    watch = Stopwatch()
    check_folder(config)
    with (
        Interrupts() as interrupts,
        prepared(config, config.out, progress, interrupts) as (journal, spool, encoder, sources),
    ):
        gather(journal, progress)
        summary = finished_summary(journal, config.out, OUTPUTS, progress)
        if summary is None:
            scorer = _score_entries(config, sources, journal, spool, progress, interrupts)
            progress.start("writing", None, "files")
            summary = _write_outputs(config, scorer, encoder, watch, sources)
            with journal.commit():
                journal.put("finished", summary)
        return JobOutcome(summary, summary["records"]["quarantined"])


def check_folder(config: ScoreConfig) -> None:
    """Make sure that the job would replace nothing but its own files, see `check_unclaimed`."""
    check_unclaimed(config.out, (*OUTPUTS, _TOKENS) if config.tokens else OUTPUTS)


def _score_entries(
    config: ScoreConfig,
    sources: Sources,
    journal: Journal,
    spool: Spool,
    progress: Progress,
    interrupts: Interrupts,
) -> EntryScorer:
    progress.start("loading the model", None, "")
    with journal.beginning():
        decoder = open_model(config, sources)
    budget = tokens_per_batch(config.max_tokens_per_batch, decoder)
    progress.note(f"{describe(decoder)}, {budget} tokens a batch")
    scorer = EntryScorer(decoder, journal, spool, keep_tokens=config.tokens)
    progress.start("scoring", scorer.remaining_tokens(), "tokens")
    with Spending(journal) as spending:

        def advance(count: int) -> None:
            spending.add(count)
            progress.advance(count)
            interrupts.check()

        scorer.run(budget, advance)
    return scorer


def _write_outputs(
    config: ScoreConfig,
    scorer: EntryScorer,
    encoder: TextEncoder,
    watch: Stopwatch,
    sources: Sources,
) -> dict[str, Any]:
    out, journal = config.out, scorer.journal
    schema = scores_schema(ifd=config.ifd, in_context=config.in_context > 0)
    with storage_errors(out):
        num_scored = write_scores(out / "scores.parquet", journal.db, schema)
        if config.tokens:
            write_tokens(out / _TOKENS, journal.db, scorer.spool)
        quarantined = write_quarantine(out / "quarantine.jsonl", read_quarantine(journal.db))
        table = pq.read_table(out / "scores.parquet")
        summary = {
            "records": {
                "read": num_scored + sum(quarantined.values()),
                "scored": num_scored,
                **left_out(quarantined),
            },
            **summarize(_columns(table), seed=config.seed),
            "performance": _performance(journal, watch),
            "settings": settings_told(config, sources, scorer.decoder),
            "key": journal.get("key"),
        }
        write_score_report(out / "report.html", table, summary, scorer, encoder.tokenizer)
        write_json_whole(out / "summary.json", summary)
    return summary


def _columns(table: pa.Table) -> dict[str, Any]:
    """Give numbers as arrays and the rest as lists, for a million rows without a million floats."""
    measured = [name for name in _IF_MEASURED if name in table.column_names]
    numbers = {*_NUMBERS, *measured}
    return {
        name: table[name].to_numpy() if name in numbers else table[name].to_pylist()
        for name in (*_SUMMARIZED, *measured)
    }


def _performance(journal: Journal, watch: Stopwatch) -> dict[str, float]:
    tokens, seconds = spent_so_far(journal)
    return {
        "seconds_total": watch.seconds(),
        "seconds_scoring": seconds,
        "response_tokens_per_second": tokens / max(seconds, 1e-9),
        **peak_memory(),
    }
