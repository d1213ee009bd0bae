"""Pass 2 of scoring: the entries of a spool through the model, each result kept as it comes.

In: a spool, a model, a journal. Out: a row of `results` an entry. Batches are planned from the spool's index and
committed one by one; what stops the job between two commits costs one batch, and never changes a bit of the result.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch

from fam_engine._rust_tokenize import Spool, plan_batches
from fam_engine.data.packing import ROW_GRID, Entries, PackedBatch, batches_of
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring import ingest
from fam_engine.jobs.scoring.spooling import MAIN
from fam_engine.measure.metrics import score_record
from fam_engine.measure.results import TokenFacts, TopTokens
from fam_engine.measure.scores import Score
from fam_engine.model.decoder import Decoder
from fam_engine.model.logprobs import launch_token_facts, token_facts, top_tokens
from fam_engine.model.nonfinite import first_nonfinite
from fam_engine.model.out_of_memory import memory_errors

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

# What is left out here is numbered by its record, behind all that pass 1 left out: `quarantine.jsonl` comes out
# the same whatever the order in which records were computed, and by however many processes.
AFTER_PASS_ONE = 1 << 40
_LEAVE_OUT = "INSERT OR IGNORE INTO quarantine VALUES (?, ?, ?, NULL, ?, ?)"

# Batches in a row that must fit before larger ones are tried again: of those at most one in so many fails.
_FITTING_TO_GROW = 32

# Of a batch with nothing to predict: responses of one token that nothing stands before.
_NO_FACTS = TokenFacts(np.empty(0), np.empty(0, np.int32), np.empty(0), np.empty(0))
_NO_TOP = TopTokens(np.empty((0, 0), np.int32), np.empty((0, 0)))


def entry_facts(
    decoder: Decoder, spool: Spool, entries: Entries, *, num_top: int = 0
) -> list[tuple[TokenFacts, TopTokens]]:
    """Compute entries of a spool as one batch.

    Args:
        decoder: The model.
        spool: Where token ids are.
        entries: Which.
        num_top: How many of the most probable tokens to give too.

    Returns:
        The facts of each entry's targets, and the most probable tokens in their places, in the
        order given.
    """
    batch = PackedBatch.of(spool, entries)
    facts, top = _NO_FACTS, _NO_TOP
    if batch.num_rows:
        hidden_RD, head_VD = decoder.hidden_rows(batch), decoder.weights.head_VD
        facts = token_facts(hidden_RD, head_VD, batch.targets, num_rows=batch.num_rows)
        if num_top:
            top = top_tokens(hidden_RD, head_VD, num_rows=batch.num_rows, count=num_top)
    bounds = pairwise(batch.entry_rows.tolist())
    return [(facts.slice(a, b), top.slice(a, b)) for a, b in bounds]


def launch_entries(
    decoder: Decoder, spool: Spool, entries: Entries
) -> Callable[[], list[TokenFacts]]:
    """Let the device compute entries of a spool as one batch.

    Returns:
        What waits for the facts of each entry's targets and gives them, in the order given.
    """
    batch = PackedBatch.of(spool, entries)
    if not batch.num_rows:
        return lambda: [_NO_FACTS] * len(entries)
    pending = launch_token_facts(
        decoder.hidden_rows(batch), decoder.weights.head_VD, batch.targets, num_rows=batch.num_rows
    )

    def read() -> list[TokenFacts]:
        facts = pending.read()
        return [facts.slice(a, b) for a, b in pairwise(batch.entry_rows.tolist())]

    return read


def runs_ahead(decoder: Decoder) -> bool:
    """Whether the next batch is launched before the results of one are read: a GPU then never waits."""
    return decoder.device.type == "cuda"


def remaining_entries(journal: Journal, spool: Spool) -> Entries:
    """Give the entries of a spool that have no result yet, int64, rising."""
    todo = np.ones(len(spool), bool)
    rows = journal.db.execute("SELECT entry FROM results")
    todo[np.fromiter((row[0] for row in rows), np.int64)] = False
    return np.flatnonzero(todo)


@dataclass(frozen=True, eq=False)
class _Flight:
    """A batch that was launched; `read` waits for its results."""

    entries: Entries
    read: Callable[[], list[TokenFacts]]


class _Budget:
    """How many tokens a batch may have: half as many after one that did not fit, in the end twice as many again.

    Without it every batch of a job whose budget is too large would fail before it is halved. What took the memory may
    be another process, so fewer tokens are not for ever.

    Args:
        tokens: What was asked for; never more.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = self._most = tokens
        self._num_fitting = 0

    @property
    def is_whole(self) -> bool:
        """Whether it is what was asked for."""
        return self.tokens == self._most

    def note_failure(self) -> None:
        """Note that a batch did not fit."""
        self.tokens = max(self.tokens // 2, min(ROW_GRID, self._most))
        self._num_fitting = 0

    def note_fit(self) -> None:
        """Note that a batch came through."""
        self._num_fitting += 1
        if self._num_fitting >= _FITTING_TO_GROW:
            self.tokens = min(2 * self.tokens, self._most)
            self._num_fitting = 0


class EntryScorer:
    """Computes the entries of a spool.

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
        # Entries that nothing else may be in flight with.
        self._loners: set[int] = set()
        self._budget = _Budget(0)

    def run(
        self, max_tokens: int, advance: Callable[[int], None], within: Entries | None = None
    ) -> None:
        """Compute every entry that has no result yet.

        Args:
            max_tokens: Token budget of a batch.
            advance: Called with the number of target tokens done, after each commit; may raise.
            within: Of these entries only; None: of all.
        """
        with self.journal.flights():
            for entry in self.journal.examine_crash():
                reason = "the process died each time this record was computed"
                self._leave_out(entry, "E_CRASH", reason)
            self._budget = _Budget(max_tokens)
            self._compute(self._plan(max_tokens, within), advance)

    def _compute(self, work: deque[Entries], advance: Callable[[int], None]) -> None:
        """Launch batch after batch, each while the one ahead of it is read and kept."""
        ahead: _Flight | None = None
        while work or ahead:
            entries = self._next(work, ahead)
            flight = None if entries is None else self._launch(entries, ahead)
            if ahead is not None:
                advance(self._land(ahead, flight, work))
            if entries is not None and flight is None:
                self._shrink(entries, work, was_alone=ahead is None)
                advance(0)
            ahead = flight
            if flight is not None and not self._may_wait(flight):
                advance(self._land(flight, None, work))
                ahead = None

    def _next(self, work: deque[Entries], ahead: _Flight | None) -> Entries | None:
        """Take the next batch, cut to what fits; None if nothing may be launched behind the one ahead."""
        if not work or (ahead is not None and not self._loners.isdisjoint(work[0].tolist())):
            return None
        entries = work.popleft()
        if self._budget.is_whole:
            return entries
        first, *others = self._batches(entries, self._budget.tokens)
        work.extendleft(reversed(others))
        return first

    def _may_wait(self, flight: _Flight) -> bool:
        """Whether the next batch may be launched before the results of this one are read."""
        return runs_ahead(self.decoder) and self._loners.isdisjoint(flight.entries.tolist())

    def remaining_tokens(self) -> int:
        """Give the number of target tokens still to be computed."""
        return int(self._target_len[remaining_entries(self.journal, self.spool)].sum())

    def _plan(self, max_tokens: int, within: Entries | None) -> deque[Entries]:
        """Plan batches of what remains; suspects of a crash first and apart."""
        work: deque[Entries] = deque()
        remaining = remaining_entries(self.journal, self.spool)
        if within is not None:
            remaining = np.intersect1d(remaining, within)
        parties = self.journal.suspect_parties()
        # If the process dies, it must be of them.
        self._loners = {entry for party in parties for entry in party}
        for party in parties:
            suspects = np.intersect1d(np.array(party, np.int64), remaining)
            work += self._batches(suspects, max_tokens)
            remaining = np.setdiff1d(remaining, suspects)
        work += self._batches(remaining, max_tokens)
        return work

    def _batches(self, entries: Entries, max_tokens: int) -> list[Entries]:
        if len(entries) == 0:
            return []
        return batches_of(plan_batches(self.spool, entries, max_tokens=max_tokens))

    def facts(self, entries: Entries) -> list[TokenFacts]:
        """Compute entries as one batch.

        Returns:
            The facts of each entry's targets, in the order given.
        """
        return [facts for facts, _ in entry_facts(self.decoder, self.spool, entries)]

    def _launch(self, entries: Entries, ahead: _Flight | None) -> _Flight | None:
        """Launch one batch behind the one ahead of it; None if memory runs out."""
        flying = [] if ahead is None else ahead.entries.tolist()
        self.journal.take_off([*flying, *entries.tolist()])
        try:
            with memory_errors():
                if runs_ahead(self.decoder):
                    return _Flight(entries, launch_entries(self.decoder, self.spool, entries))
                facts = self.facts(entries)
        except torch.OutOfMemoryError:
            # What follows happens after this returns: a traceback would keep the tensors alive.
            return None
        return _Flight(entries, lambda: facts)

    def _land(self, flight: _Flight, behind: _Flight | None, work: deque[Entries]) -> int:
        """Keep the results of a batch; give the number of target tokens, 0 where memory ran out.

        Args:
            flight: The batch.
            behind: What was launched behind it.
            work: Where its halves go if memory ran out.
        """
        read = self._read(flight)
        if read is None:
            self._shrink(flight.entries, work, was_alone=behind is None)
            return 0
        self._budget.note_fit()
        facts, nonfinite = read
        entries = flight.entries.tolist()
        with self.journal.commit() as db:
            for entry, one in zip(entries, facts, strict=True):
                if entry in nonfinite:
                    self._refuse(db, entry, "E_NONFINITE", nonfinite[entry])
                else:
                    self._keep(db, entry, one)
            self.journal.land(entries, flying=[] if behind is None else behind.entries.tolist())
        return int(self._target_len[flight.entries].sum())

    def _read(self, flight: _Flight) -> tuple[list[TokenFacts], dict[int, str]] | None:
        """Give the facts of a batch, and what is wrong with some; None if memory runs out."""
        try:
            with memory_errors():
                facts = flight.read()
                return facts, self._nonfinite(flight.entries, facts)
        except torch.OutOfMemoryError:
            return None

    def _nonfinite(self, entries: Entries, facts: list[TokenFacts]) -> dict[int, str]:
        """Give the entries with a log-prob that is not finite, and where in the model that began."""
        is_bad = [not np.isfinite(one.logprobs).all() for one in facts]
        if not any(is_bad):
            return {}
        places = first_nonfinite(self.decoder, PackedBatch.of(self.spool, entries))
        return {
            entry: f"the model gives no finite log-prob: {place}"
            for entry, place, bad in zip(entries.tolist(), places, is_bad, strict=True)
            if bad
        }

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

    def _shrink(self, entries: Entries, work: deque[Entries], *, was_alone: bool) -> None:
        """Put a batch that did not fit in memory back: as two halves, or a record to be tried with nothing else.

        Args:
            entries: The batch.
            work: Where it goes.
            was_alone: Whether nothing else was in flight.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(entries) > 1:
            self._budget.note_failure()
            half = len(entries) // 2
            work.extendleft((entries[half:], entries[:half]))
        elif was_alone:
            reason = "does not fit in memory even alone in its batch"
            self._leave_out(int(entries[0]), "E_OOM_RECORD", reason)
        else:
            self._loners.add(int(entries[0]))
            work.appendleft(entries)

    def _leave_out(self, entry: int, code: str, reason: str) -> None:
        """Refuse an entry; nothing is in flight."""
        with self.journal.commit() as db:
            self._refuse(db, entry, code, reason)
            self.journal.land([entry])

    def _refuse(self, db: sqlite3.Connection, entry: int, code: str, reason: str) -> None:
        """Keep an empty result; a record whose own entry has none is quarantined."""
        db.execute(_INSERT_RESULT, (entry, *(None,) * (len(METRICS) + 1)))
        if self._variant[entry] != MAIN:
            return
        position = int(self._record[entry])
        file, line = db.execute(
            "SELECT file, line FROM records WHERE position = ?", (position,)
        ).fetchone()
        db.execute(_LEAVE_OUT, (AFTER_PASS_ONE + position, file, line, code, reason))
