"""`fam-engine score`: files of answers in, a table of how familiar each is to the model out.

In: a `ScoreConfig`. Out: `scores.parquet` and what goes with it, in the output folder. Two passes: records become an
on-disk spool of token ids (`ingest`), then batches planned from its index go through the model, each committed as it is
done. Whatever stops the job, the same command goes on from there, and the table comes out the same to the last bit.
"""

from __future__ import annotations

import hashlib
import platform
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fam_engine._rust_tokenize import Spool, pack_batch, plan_batches
from fam_engine.config import ScoreConfig
from fam_engine.data.packing import PackedBatch
from fam_engine.data.reading import check_file, hash_file
from fam_engine.data.templates import TEMPLATE_DATE
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.embedded import DEMO_RECORDS
from fam_engine.errors import ModelRefusedError
from fam_engine.jobs import ingest
from fam_engine.jobs.ingest import DataFile, Ingest, IngestPlan
from fam_engine.jobs.journal import Journal
from fam_engine.measure.metrics import score_record
from fam_engine.measure.results import TokenFacts
from fam_engine.measure.scores import Score
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.loading import hash_model, load_model, resolve_model
from fam_engine.model.logprobs import token_facts
from fam_engine.model.memory import default_tokens_per_batch
from fam_engine.version import __version__

METRICS = tuple(field.name for field in fields(Score))
SCHEMA = f"""
{ingest.SCHEMA}
CREATE TABLE IF NOT EXISTS results (
    entry INTEGER PRIMARY KEY, first_nll REAL, {", ".join(f"{name} REAL" for name in METRICS)}
);
CREATE TABLE IF NOT EXISTS tokens (
    entry INTEGER PRIMARY KEY, logprobs BLOB, ranks BLOB, entropies BLOB
);
"""
_INSERT_RESULT = f"INSERT OR REPLACE INTO results VALUES (?, ?{', ?' * len(METRICS)})"

Entries = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sources:
    """Where a job's input is: data files, the model's folder, the adapter's."""

    files: tuple[DataFile, ...]
    model: Path
    revision: str | None
    adapter: Path | None


def find_sources(config: ScoreConfig) -> Sources:
    """Resolve the names a user gave.

    Raises:
        InputError: A data file is missing or of an unknown kind.
        ModelRefusedError: The model or the adapter is not there.
    """
    files = tuple(
        DataFile(name, DEMO_RECORDS if name == "embedded" else check_file(name))
        for name in config.data
    )
    model, revision = resolve_model(config.model, download=config.download)
    if config.adapter is not None and not config.adapter.is_dir():
        raise ModelRefusedError(
            "is not a folder, expected a PEFT LoRA adapter",
            code="E_ADAPTER_NOT_FOUND",
            where=str(config.adapter),
        )
    return Sources(files, model, revision, config.adapter)


def run_key(config: ScoreConfig, sources: Sources, encoder: TextEncoder) -> dict[str, Any]:
    """Give all that scores depend on; progress belongs to exactly this."""
    template = encoder.template.source if encoder.template else ""
    settings = config.model_dump(
        mode="json", exclude={"model", "data", "out", "adapter", "max_tokens_per_batch", "download"}
    )
    return {
        "data": [hash_file(file.path) for file in sources.files],
        "model": hash_model(sources.model),
        "adapter": hash_model(sources.adapter) if sources.adapter else None,
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "template_date": TEMPLATE_DATE,
        **settings,
        "threads": torch.get_num_threads(),
        "machine": _device_name(config.device),
        "versions": {"fam-engine": __version__, "torch": torch.__version__},
    }


def _device_name(device: str) -> str:
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.machine()


def ingest_plan(config: ScoreConfig, model: ModelConfig) -> IngestPlan:
    """Give pass 1 its orders."""
    longest = model.max_position_embeddings
    return IngestPlan(
        max_length=min(longest, config.max_length or longest),
        on_long=config.on_long,
        ifd=config.ifd,
        in_context=config.in_context,
        columns=config.map,
        limit=config.limit,
    )


def ingest_records(
    journal: Journal,
    encoder: TextEncoder,
    plan: IngestPlan,
    files: Sequence[DataFile],
    advance: Callable[[int], None],
) -> Spool:
    """Run pass 1 unless it is done, and open its spool."""
    if journal.get("ingested") is None:
        Ingest(journal, encoder, plan).run(files, advance)
    return Spool.open(str(journal.folder / "spool"))


class Scorer:
    """Pass 2: the entries of a spool through the model, each result kept as it comes.

    Args:
        decoder: The model.
        journal: Where results go.
        spool: Where token ids are.
        keep_tokens: Whether the facts of every token are kept too.
    """

    def __init__(
        self, decoder: Decoder, journal: Journal, spool: Spool, *, keep_tokens: bool = False
    ) -> None:
        self.decoder = decoder
        self.journal = journal
        self.spool = spool
        self.keep_tokens = keep_tokens
        index = spool.index()
        self._context_len = index["context_len"]
        self._target_len = index["target_len"]
        self._num_eot = index["num_eot"]
        self._record = index["record"]
        self._variant = index["variant"]

    def run(self, max_tokens: int, advance: Callable[[int], None]) -> None:
        """Compute every entry that has no result yet.

        Args:
            max_tokens: Token budget of a batch.
            advance: Called with the number of target tokens done, after each commit; may raise.
        """
        for entry in self.journal.examine_crash():
            self._leave_out(entry, "E_CRASH", "the process died each time this record was computed")
        work = self._plan(max_tokens)
        while work:
            entries = work.popleft()
            try:
                done = self._batch(entries)
            except torch.OutOfMemoryError:
                done = 0
            if done == 0:
                # Outside the except block: a traceback would keep the tensors alive.
                self._shrink(entries, work)
            advance(done)

    def remaining_tokens(self) -> int:
        """Give the number of target tokens still to be computed."""
        return int(self._target_len[self._remaining()].sum())

    def _remaining(self) -> Entries:
        todo = np.ones(len(self.spool), bool)
        rows = self.journal.db.execute("SELECT entry FROM results").fetchall()
        todo[[row[0] for row in rows]] = False
        return np.flatnonzero(todo)

    def _plan(self, max_tokens: int) -> deque[Entries]:
        """Plan batches of what remains; suspects of a crash first and apart."""
        work: deque[Entries] = deque()
        remaining = self._remaining()
        for party in self.journal.suspect_parties():
            suspects = np.intersect1d(np.array(party, np.int64), remaining)
            work += self._batches(suspects, max_tokens)
            remaining = np.setdiff1d(remaining, suspects)
        work += self._batches(remaining, max_tokens)
        return work

    def _batches(self, entries: Entries, max_tokens: int) -> list[Entries]:
        if len(entries) == 0:
            return []
        plan = plan_batches(self.spool, entries, max_tokens=max_tokens)
        return [plan.batch_entries(number) for number in range(plan.num_batches)]

    def facts(self, entries: Entries) -> list[TokenFacts]:
        """Compute entries as one batch.

        Returns:
            The facts of each entry's targets, in the order given.
        """
        batch = PackedBatch(**pack_batch(self.spool, entries))
        hidden_RD = self.decoder.hidden_rows(batch)
        whole = token_facts(
            hidden_RD, self.decoder.weights.head_VD, batch.targets, num_rows=batch.num_rows
        )
        return [whole.slice(a, b) for a, b in pairwise(batch.entry_rows.tolist())]

    def _batch(self, entries: Entries) -> int:
        """Compute and keep one batch; give the number of target tokens done."""
        self.journal.take_off(entries.tolist())
        facts = self.facts(entries)
        with self.journal.commit() as db:
            for entry, one in zip(entries.tolist(), facts, strict=True):
                if np.isfinite(one.logprobs).all():
                    self._keep(db, entry, one)
                else:
                    self._refuse(db, entry, "E_NONFINITE", "the model gives no finite log-prob")
            self.journal.land(entries.tolist())
        return int(self._target_len[entries].sum())

    def _keep(self, db: sqlite3.Connection, entry: int, facts: TokenFacts) -> None:
        db.execute(_INSERT_RESULT, self._result(entry, facts))
        if self.keep_tokens:
            blobs = (facts.logprobs, facts.ranks, facts.entropies)
            db.execute(
                "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?)",
                (entry, *(blob.tobytes() for blob in blobs)),
            )

    def _result(self, entry: int, facts: TokenFacts) -> tuple[float | None, ...]:
        num_response = int(self._target_len[entry]) - int(self._num_eot[entry])
        num_bytes = self.journal.db.execute(
            "SELECT num_bytes FROM records WHERE position = ?", (int(self._record[entry]),)
        ).fetchone()[0]
        score = score_record(
            facts,
            num_prompt_tokens=int(self._context_len[entry]),
            num_response_tokens=num_response,
            num_bytes=num_bytes,
        )
        first = float(-facts.logprobs[0]) if num_response else None
        return (entry, first, *(getattr(score, name) for name in METRICS))

    def _shrink(self, entries: Entries, work: deque[Entries]) -> None:
        """Put a batch that did not fit in memory back as two halves."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(entries) == 1:
            self._leave_out(
                int(entries[0]), "E_OOM_RECORD", "does not fit in memory even alone in its batch"
            )
            return
        half = len(entries) // 2
        work.extendleft((entries[half:], entries[:half]))

    def _leave_out(self, entry: int, code: str, reason: str) -> None:
        with self.journal.commit() as db:
            self._refuse(db, entry, code, reason)
            self.journal.land([entry])

    def _refuse(self, db: sqlite3.Connection, entry: int, code: str, reason: str) -> None:
        """Keep an empty result; a record whose own entry has none is quarantined."""
        db.execute(_INSERT_RESULT, (entry, *(None,) * (len(METRICS) + 1)))
        if self._variant[entry] != ingest.MAIN:
            return
        file, line = db.execute(
            "SELECT file, line FROM records WHERE position = ?", (int(self._record[entry]),)
        ).fetchone()
        self.journal.quarantine([(file, line, None, code, reason)])


def open_model(config: ScoreConfig, sources: Sources) -> Decoder:
    """Load the model of a job."""
    return load_model(
        sources.model,
        adapter=sources.adapter,
        precision=config.precision,
        compute_dtype=config.compute_dtype,
        device=config.device,
    )


def tokens_per_batch(config: ScoreConfig, decoder: Decoder) -> int:
    """Give the token budget of a batch: the one asked for, or what fits."""
    return config.max_tokens_per_batch or default_tokens_per_batch(
        decoder.config, decoder.device, decoder.compute_dtype
    )


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Give the seconds so far."""
        return time.perf_counter() - self._start
