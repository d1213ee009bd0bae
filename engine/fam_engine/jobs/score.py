"""The scoring job from its settings to its files; what the command line and other jobs call.

In: a `ScoreConfig` and somebody to tell about progress. Out: a `ScoreOutcome`, or a `ScoreForecast` for a dry run.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fam_engine._rust_tokenize import Spool, plan_batches
from fam_engine.config import ScoreConfig
from fam_engine.data.files import write_text_whole
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs import scoring
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.score_files import (
    scores_schema,
    write_quarantine,
    write_scores,
    write_tokens,
)
from fam_engine.jobs.score_report import write_score_report
from fam_engine.measure.summary import summarize
from fam_engine.model.config import ModelConfig
from fam_engine.model.loading import choose_compute_dtype, choose_device
from fam_engine.model.memory import batch_bytes, default_tokens_per_batch, weight_bytes

# What a finished job leaves; `tokens.parquet` comes on top where asked for.
OUTPUTS = ("scores.parquet", "quarantine.jsonl", "report.html", "summary.json")
_NUMBERS = ("nll_sum", "nll_mean", "perplexity", "bits_per_byte", "rank_mean", "surprising_rate")
_SUMMARIZED = ("source", "group", "correct", "flags", "num_response_tokens", *_NUMBERS)


class Progress(Protocol):
    """Whoever wants to know how far the job is."""

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Begin a phase of `total` units."""

    def advance(self, count: int) -> None:
        """Note that so many more units are done."""

    def note(self, text: str) -> None:
        """Pass on a line of news."""


@dataclass(frozen=True)
class ScoreOutcome:
    """A finished job.

    Attributes:
        summary: What `summary.json` holds.
        num_quarantined: Records left out.
    """

    summary: dict[str, Any]
    num_quarantined: int


@dataclass(frozen=True)
class ScoreForecast:
    """What a job would do, from a dry run.

    Attributes:
        num_records: Records that would be scored.
        quarantined: Records that would be left out, by code.
        tokens: Prompt and response tokens; those computed with and without shared prompts.
        lengths: Mean, median, 95th percentile and maximum of prompt and response tokens.
        longest: The longest records: (id, tokens).
        max_tokens_per_batch: Token budget of a batch.
        memory_bytes: Weights and one batch, estimated.
        seconds: Time, from a probe of this machine's matrix products.
    """

    num_records: int
    quarantined: dict[str, int]
    tokens: dict[str, int]
    lengths: dict[str, dict[str, float]]
    longest: list[tuple[str, int]]
    max_tokens_per_batch: int
    memory_bytes: int
    seconds: float


@contextlib.contextmanager
def _prepared(
    config: ScoreConfig, out: Path, progress: Progress, interrupts: Interrupts
) -> Iterator[tuple[Journal, Spool, TextEncoder, scoring.Sources]]:
    """Open the journal and run pass 1."""
    sources = scoring.find_sources(config)
    model = ModelConfig.from_folder(sources.model)
    encoder = TextEncoder(
        sources.model,
        template=config.template,
        boundary=config.boundary,
        parse_special=config.parse_special,
    )

    def advance(count: int) -> None:
        progress.advance(count)
        interrupts.check()

    with contextlib.closing(encoder):
        key = scoring.run_key(config, sources, encoder)
        with Journal(out, key, scoring.SCHEMA) as journal:
            progress.start("reading", None, "records")
            plan = scoring.ingest_plan(config, model)
            with storage_errors(out):
                spool = scoring.ingest_records(journal, encoder, plan, sources.files, advance)
            for form in journal.get("forms"):
                progress.note(_shown(form))
            yield journal, spool, encoder, sources


def _shown(form: dict[str, str]) -> str:
    """Show how a file was understood: its form, and one example with the scored part marked."""
    context, response = (_clipped(form[name]) for name in ("context", "response"))
    return f"{form['file']}: {form['form']}\n  {context}[[{response}]]"


def _clipped(text: str) -> str:
    shown = text if len(text) <= 160 else f"{text[:80]} ... {text[-70:]}"
    return shown.replace("\n", "\\n")


def run_score(config: ScoreConfig, progress: Progress) -> ScoreOutcome:
    """Score a job's records, or go on where an earlier run of the same job stopped.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        Interrupted: A signal came; what is done is kept.
    """
    watch = scoring.Stopwatch()
    with (
        Interrupts() as interrupts,
        _prepared(config, config.out, progress, interrupts) as (journal, spool, encoder, sources),
    ):
        finished = journal.get("finished")
        if finished is not None and all((config.out / name).is_file() for name in OUTPUTS):
            progress.note(f"{config.out} is complete already")
            return ScoreOutcome(finished, finished["records"]["quarantined"])
        scorer = _score_entries(config, sources, journal, spool, progress, interrupts)
        progress.start("writing", None, "files")
        summary = _write_outputs(config, scorer, encoder, watch, sources)
        with journal.commit():
            journal.put("finished", summary)
        return ScoreOutcome(summary, summary["records"]["quarantined"])


def _score_entries(
    config: ScoreConfig,
    sources: scoring.Sources,
    journal: Journal,
    spool: Spool,
    progress: Progress,
    interrupts: Interrupts,
) -> scoring.Scorer:
    progress.start("loading the model", None, "")
    decoder = scoring.open_model(config, sources)
    budget = scoring.tokens_per_batch(config, decoder)
    progress.note(
        f"{decoder.num_parameters / 1e6:.1f} M parameters, {decoder.precision} weights, "
        f"{str(decoder.compute_dtype).removeprefix('torch.')} on {decoder.device}, "
        f"{budget} tokens a batch"
    )
    scorer = scoring.Scorer(decoder, journal, spool, keep_tokens=config.tokens)
    progress.start("scoring", scorer.remaining_tokens(), "tokens")
    watch = scoring.Stopwatch()
    tokens, seconds = journal.get("spent") or (0, 0.0)

    def advance(count: int) -> None:
        nonlocal tokens
        tokens += count
        with journal.commit():
            journal.put("spent", (tokens, seconds + watch.seconds()))
        progress.advance(count)
        interrupts.check()

    try:
        scorer.run(budget, advance)
    except BaseException:
        journal.clear_flight()
        raise
    return scorer


def _write_outputs(
    config: ScoreConfig,
    scorer: scoring.Scorer,
    encoder: TextEncoder,
    watch: scoring.Stopwatch,
    sources: scoring.Sources,
) -> dict[str, Any]:
    out, journal = config.out, scorer.journal
    schema = scores_schema(ifd=config.ifd, in_context=config.in_context > 0)
    with storage_errors(out):
        num_scored = write_scores(out / "scores.parquet", journal.db, schema)
        if config.tokens:
            write_tokens(out / "tokens.parquet", journal.db, scorer.spool)
        quarantined = write_quarantine(out / "quarantine.jsonl", journal.db)
        table = pq.read_table(out / "scores.parquet")
        summary = {
            "records": {
                "read": num_scored + sum(quarantined.values()),
                "scored": num_scored,
                "quarantined": sum(quarantined.values()),
                "quarantined_by_code": quarantined,
                "skipped": 0,
            },
            **summarize(_columns(table), seed=config.seed),
            "performance": _performance(journal, watch),
            "settings": _settings(config, scorer, sources),
            "key": journal.get("key"),
        }
        write_score_report(out / "report.html", table, summary, scorer, encoder.tokenizer)
        write_text_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _columns(table: pa.Table) -> dict[str, Any]:
    """Give numbers as arrays and the rest as lists, for a million rows without a million floats."""
    return {
        name: table[name].to_numpy() if name in _NUMBERS else table[name].to_pylist()
        for name in _SUMMARIZED
    }


def _performance(journal: Journal, watch: scoring.Stopwatch) -> dict[str, float]:
    tokens, seconds = journal.get("spent") or (0, 0.0)
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    performance = {
        "seconds_total": watch.seconds(),
        "seconds_scoring": seconds,
        "response_tokens_per_second": tokens / max(seconds, 1e-9),
        "peak_memory_bytes": peak,
    }
    if torch.cuda.is_available():
        performance["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
    return performance


def _settings(
    config: ScoreConfig, scorer: scoring.Scorer, sources: scoring.Sources
) -> dict[str, Any]:
    return {
        **config.model_dump(mode="json"),
        "revision": sources.revision,
        "compute_dtype": str(scorer.decoder.compute_dtype).removeprefix("torch."),
        "device": str(scorer.decoder.device),
    }


def forecast_score(config: ScoreConfig, progress: Progress) -> ScoreForecast:
    """Read the records, plan the batches, and say what scoring them would take.

    Raises:
        FamEngineError: As `run_score` would, for data, template and tokenizer.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fam-engine-") as folder,
        Interrupts() as interrupts,
        _prepared(config, Path(folder), progress, interrupts) as (journal, spool, _, sources),
    ):
        model = ModelConfig.from_folder(sources.model)
        device = choose_device(config.device)
        dtype = choose_compute_dtype(
            config.compute_dtype, precision=config.precision, device=device
        )
        budget = config.max_tokens_per_batch or default_tokens_per_batch(model, device, dtype)
        plan = plan_batches(spool, np.arange(len(spool), dtype=np.int64), max_tokens=budget)
        index = spool.index()
        return ScoreForecast(
            num_records=journal.get("ingested")["records"],
            quarantined=dict(
                journal.db.execute("SELECT code, COUNT(*) FROM quarantine GROUP BY code")
            ),
            tokens={
                "prompt": int(index["context_len"].sum()),
                "response": int(index["target_len"].sum()),
                "computed": plan.total_tokens,
                "without_sharing": plan.tokens_without_sharing,
            },
            lengths={
                "prompt": _lengths(index["context_len"]),
                "response": _lengths(index["target_len"]),
            },
            longest=_longest(journal),
            max_tokens_per_batch=budget,
            memory_bytes=weight_bytes(model, config.precision, dtype)
            + batch_bytes(model, budget, dtype),
            seconds=_predict_seconds(
                model, plan.total_tokens, int(index["target_len"].sum()), dtype, device
            ),
        )


def _lengths(counts: npt.NDArray[np.uint32]) -> dict[str, float]:
    median, p95 = np.quantile(counts, [0.5, 0.95])
    return {
        "mean": float(counts.mean()),
        "median": float(median),
        "p95": float(p95),
        "max": float(counts.max()),
    }


def _longest(journal: Journal) -> list[tuple[str, int]]:
    return journal.db.execute(
        "SELECT id, num_prompt_tokens + num_response_tokens AS n FROM records "
        "ORDER BY n DESC, position LIMIT 5"
    ).fetchall()


def _predict_seconds(
    model: ModelConfig, num_tokens: int, num_rows: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Predict the time from the speed of one of the model's own matrix products, timed here."""
    rows, inner, outer = 512, model.hidden_size, 2 * model.intermediate_size
    x = torch.randn(rows, inner, device=device).to(dtype)
    w = torch.randn(outer, inner, device=device).to(dtype)
    float(torch.mm(x, w.T).sum())
    watch = scoring.Stopwatch()
    rounds = 0
    while rounds < 3 or watch.seconds() < 0.5:
        float(torch.mm(x, w.T).sum())
        rounds += 1
    flops_a_second = 2.0 * rows * inner * outer * rounds / watch.seconds()
    body = weight_bytes(model, "fp32", dtype) / 4 - model.vocab_size * model.hidden_size
    head = model.vocab_size * model.hidden_size
    # Attention, norms and the element-wise work on the logits come on top of the products.
    overhead = 1.4
    return overhead * 2.0 * (num_tokens * body + num_rows * head) / flops_a_second
