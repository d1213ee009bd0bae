"""Records that kill the process that trains on them: found after its death, and named.

In: a journal, examples. Out: nothing, or an error that names the one record. What a step or a validation computes is
noted before. A process that comes after one that died in it first tries these records out, in halves a death, their
gradients forgotten; so after a kill that was nobody's fault the run still ends in the same bits. Leaving the record
out, as scoring does, was rejected: what is trained on, and in which order, would then depend on when the process died.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from fam_engine.errors import InputError
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring import ingest
from fam_engine.jobs.training.examples import Examples
from fam_engine.jobs.training.peers import PeerLostError


class CrashWatch:
    """Notes what is computed, and looks at what a dead process was at.

    Args:
        journal: Of the job; None: this is not the first process of the run, which alone keeps notes.
        train: What is trained on.
        validation: What is judged by; None: nothing.
    """

    def __init__(
        self, journal: Journal | None, train: Examples, validation: Examples | None
    ) -> None:
        self._journal = journal
        self._train = train
        self._validation = validation

    @contextlib.contextmanager
    def noted(self, examples: Examples) -> Iterator[None]:
        """Keep a note of some examples while they are computed; only a process that dies leaves it."""
        if self._journal is None:
            yield
            return
        self._journal.take_off(self._numbers(examples))
        try:
            yield
        except PeerLostError:
            raise  # what the other process died of may be among them
        except BaseException:
            self._journal.clear_flight()
            raise
        self._journal.clear_flight()

    def examine(self, try_out: Callable[[Examples], None], note: Callable[[str], None]) -> None:
        """Try out what was in work when a process died.

        Args:
            try_out: Computes examples, and keeps nothing of it.
            note: Told of it.

        Raises:
            InputError: A record that has killed the process each time it was computed, alone.
        """
        if self._journal is None:
            return
        for number in self._journal.examine_crash():
            raise self._blamed(self._journal, number)
        parties = self._journal.suspect_parties()
        if parties:
            note(f"the process before died; trying out its {sum(map(len, parties))} records")
        for party in parties:
            examples = self._examples(party)
            with self.noted(examples):
                try_out(examples)
                with self._journal.commit():
                    self._journal.land(party)

    # The entries of a validation file are of another spool: they are counted after the others.

    def _is_apart(self, examples: Examples) -> bool:
        return examples.spool is not self._train.spool

    def _numbers(self, examples: Examples) -> list[int]:
        first = len(self._train.spool) if self._is_apart(examples) else 0
        return [first + entry for entry in examples.entries.tolist()]

    def _examples(self, numbers: list[int]) -> Examples:
        """Give back what was noted; all of a note are of one spool."""
        first = len(self._train.spool)
        if numbers[0] < first:
            return replace(self._train, entries=np.array(numbers, np.int64))
        assert self._validation is not None
        return replace(self._validation, entries=np.array(numbers, np.int64) - first)

    def _blamed(self, journal: Journal, number: int) -> InputError:
        file, line = self._place(journal, number)
        return InputError(
            "the process died each time this record was computed, the last times alone",
            code="E_CRASH",
            where=f"{file}:{line}",
            hint="leave it out and train into another --out; the same command tries it once more",
        )

    def _place(self, journal: Journal, number: int) -> tuple[str, int]:
        """Give a record's file and line."""
        query, first = "SELECT file, line FROM records WHERE entry = ?", len(self._train.spool)
        if number < first:
            found: tuple[str, int] = journal.db.execute(query, (number,)).fetchone()
            return found
        with open_validation(journal) as own:
            found = own.db.execute(query, (number - first,)).fetchone()
            return found


def open_validation(journal: Journal) -> Journal:
    """Open what is kept of the validation file, in a folder of a job's own."""
    return Journal(journal.folder / "validation", journal.get("key"), ingest.SCHEMA)
