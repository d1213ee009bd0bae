"""Pass 2 of generating: questions through the model, each kept as it comes.

In: a table of questions, a `Generator`, a journal. Out: a row of `texts` a sample. A question is committed when all its
samples are there; what stops the job costs the texts on their way, and they come out the same the next time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from fam_engine.jobs.generation import ingest
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.spending import Spending
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.requests import Completion, Request, Sampling

SCHEMA = f"""
{ingest.SCHEMA}
CREATE TABLE IF NOT EXISTS texts (
    position INTEGER, sample INTEGER, text TEXT, num_tokens INTEGER, finish_reason TEXT,
    is_judged INTEGER, correct INTEGER, nll_sum REAL, eos_nll REAL, PRIMARY KEY (position, sample)
);
"""
_INSERT = """
INSERT INTO texts (position, sample, text, num_tokens, finish_reason, is_judged, nll_sum, eos_nll)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""


class TextMaker:
    """Generates what is missing.

    Args:
        generator: The model. Its `max_slots` is lowered where memory runs out, until what took it is through.
        journal: Where questions are and texts go.
        sampling: How tokens are chosen.
        num_samples: Texts a question.
    """

    def __init__(
        self, generator: Generator, journal: Journal, sampling: Sampling, num_samples: int
    ) -> None:
        self._generator = generator
        self._journal = journal
        self._sampling = sampling
        self._num_samples = num_samples
        self._max_slots = generator.max_slots
        # Questions read by the generator and not yet finished, in order.
        self._in_flight: list[int] = []

    def run(self, on_question: Callable[[int], None], on_step: Callable[[int], None]) -> None:
        """Generate for every question that has no texts yet.

        Args:
            on_question: Called with 1 for each question that is done.
            on_step: Called with the number of tokens made, after each step; may raise.
        """
        try:
            with self._journal.flights():
                for position in self._journal.examine_crash():
                    reason = "the process died each time this record was computed"
                    self._leave_out(position, "E_CRASH", reason)
                for party in self._journal.suspect_parties():
                    self._make(party, on_question, on_step)
                self._make(self.remaining(), on_question, on_step)
        finally:
            self._generator.max_slots = self._max_slots

    def remaining(self) -> list[int]:
        """Give the positions without texts, the longest prompts first."""
        return [
            row[0]
            for row in self._journal.db.execute(
                "SELECT position FROM questions WHERE position NOT IN (SELECT position FROM texts) "
                "ORDER BY num_prompt_tokens DESC, position"
            )
        ]

    def _make(
        self,
        positions: Sequence[int],
        on_question: Callable[[int], None],
        on_step: Callable[[int], None],
    ) -> None:
        """Generate for some questions, with fewer slots when memory runs out."""
        while not self._fits(positions, on_question, on_step):
            flying = list(self._in_flight)
            if self._generator.max_slots > 1:
                self._generator.max_slots //= 2
            elif len(positions) == 1:
                reason = "does not fit in memory even alone in the cache"
                self._leave_out(positions[0], "E_OOM_RECORD", reason)
                return
            else:
                for position in flying:
                    self._make([position], on_question, on_step)
                # What did not fit is done or left out: for its sake the others need not be few at a time.
                self._generator.max_slots = self._max_slots
            missing = set(self.remaining())
            positions = [position for position in positions if position in missing]

    def _fits(
        self,
        positions: Sequence[int],
        on_question: Callable[[int], None],
        on_step: Callable[[int], None],
    ) -> bool:
        """Generate, unless memory runs out."""
        gathered: dict[int, list[Completion]] = {}
        self._in_flight = []
        try:
            requests = self._requests(positions)
            for one in self._generator.generate(requests, self._sampling, on_step=on_step):
                texts = gathered.setdefault(one.request, [])
                texts.append(one)
                if len(texts) == self._num_samples:
                    self._keep(positions[one.request], gathered.pop(one.request))
                    on_question(1)
        except torch.OutOfMemoryError:
            # What follows happens after this returns: a traceback would keep the tensors alive.
            return False
        return True

    def _requests(self, positions: Sequence[int]) -> Iterator[Request]:
        for position in positions:
            context, seed = self._journal.db.execute(
                "SELECT context, seed FROM questions WHERE position = ?", (position,)
            ).fetchone()
            self._in_flight.append(position)
            self._journal.take_off(self._in_flight)
            yield Request(np.frombuffer(context, np.int32), seed, self._num_samples)

    def _keep(self, position: int, completions: list[Completion]) -> None:
        with self._journal.commit() as db:
            for one in completions:
                text = "" if one.finish_reason == "nonfinite" else one.text
                made = (len(one.token_ids), one.finish_reason)
                db.execute(_INSERT, (position, one.sample, text, *made, 0, *self._losses(one)))
            if problem := _nothing_usable(completions):
                self._quarantine(db, position, *problem)
            self._journal.land([position])
        self._in_flight.remove(position)
        self._journal.take_off(self._in_flight)

    def _losses(self, one: Completion) -> tuple[float | None, float | None]:
        """Give the loss of a text given its prompt and that of its end, in nats, as `score` does for the record.

        None where scoring would see other tokens: the text was cut, or the model spelled it otherwise
        than the tokenizer does; of the end also where the model ended with another token than a turn does.
        """
        if one.finish_reason != "eos" or one.logprobs is None or not self._generator.respells(one):
            return None, None
        end = one.end_logprob if self._generator.ends_turn(one) else None
        return -float(one.logprobs.sum()), None if end is None else -end

    def _leave_out(self, position: int, code: str, reason: str) -> None:
        with self._journal.commit() as db:
            db.execute(_INSERT, (position, 0, "", 0, None, 1, None, None))
            self._quarantine(db, position, code, reason)
            self._journal.land([position])

    def _quarantine(self, db: sqlite3.Connection, position: int, code: str, reason: str) -> None:
        file, line = db.execute(
            "SELECT file, line FROM questions WHERE position = ?", (position,)
        ).fetchone()
        self._journal.quarantine([(file, line, None, code, reason)])


def make_told(
    maker: TextMaker, journal: Journal, progress: Progress, interrupts: Interrupts
) -> None:
    """Make what is missing, and tell how far that is and how fast.

    Args:
        maker: Of the texts.
        journal: Where what this takes is added up.
        progress: Who is told.
        interrupts: Asked after every step.
    """
    with Spending(journal) as spending:

        def on_step(num_tokens: int) -> None:
            spending.add(num_tokens)
            progress.advance(0, spending.rate())
            interrupts.check()

        maker.run(lambda count: progress.advance(count, spending.rate()), on_step)


def _nothing_usable(completions: list[Completion]) -> tuple[str, str] | None:
    """Say why not one completion can be a record, if so."""
    if any(one.text and one.finish_reason != "nonfinite" for one in completions):
        return None
    if any(one.finish_reason == "nonfinite" for one in completions):
        return "E_NONFINITE", "the model gives no finite logits"
    return "E_EMPTY_RESPONSE", "the model ends its turn without a text"
