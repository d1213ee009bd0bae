"""Continuations of contexts, both as token ids in memory: what the model says about each of their tokens.

In: pairs of context ids and target ids. Out: `Continuation`s as their batches are done. It is pass 2 of the scoring job
without its journal: the pairs go through a scratch spool, so batches are planned, contexts shared and rows computed by
the same code, and a pair has the bits `fam-engine score` gives the record with these ids. For programs that ask for
much in small portions: the server, other tools' plug-ins.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from fam_engine._rust_tokenize import Spool, plan_batches
from fam_engine.data.packing import Entries, Int32, batches_of
from fam_engine.jobs.scoring.entries import entry_facts
from fam_engine.jobs.scoring.spooling import MAIN, EntryWriter
from fam_engine.measure.results import TokenFacts, TopTokens
from fam_engine.model.decoder import Decoder
from fam_engine.model.out_of_memory import in_halves

# Context ids, at least one, and target ids.
Pair = tuple[Int32, Int32]


@dataclass(frozen=True, eq=False)
class Continuation:
    """What the model says about one continuation.

    Attributes:
        index: Its place among the pairs.
        facts: Of its tokens.
        top: The most probable tokens in their places, as many as were asked for.
    """

    index: int
    facts: TokenFacts
    top: TopTokens


def continuations(
    decoder: Decoder, pairs: Sequence[Pair], *, max_tokens: int, num_top: int = 0
) -> Iterator[Continuation]:
    """Compute continuations.

    Args:
        decoder: The model.
        pairs: Contexts and targets; those with the same context share its computation.
        max_tokens: Token budget of a batch.
        num_top: How many of the most probable tokens to give in each place.

    Yields:
        A result a pair, those of a batch together, the longest first.

    Raises:
        torch.OutOfMemoryError: A pair does not fit in memory even alone.
    """
    if not pairs:
        return
    with tempfile.TemporaryDirectory(prefix="fam-engine-") as folder:
        spool, entries = _spooled(Path(folder), pairs), np.arange(len(pairs))
        yield from entry_continuations(
            decoder, spool, entries, max_tokens=max_tokens, num_top=num_top
        )


def entry_continuations(
    decoder: Decoder, spool: Spool, entries: Entries, *, max_tokens: int, num_top: int = 0
) -> Iterator[Continuation]:
    """Compute entries of a spool, otherwise like `continuations`."""
    for batch in batches_of(plan_batches(spool, entries, max_tokens=max_tokens)):
        parts = in_halves(lambda part: entry_facts(decoder, spool, part, num_top=num_top), batch)
        for entry, (facts, top) in zip(batch.tolist(), chain.from_iterable(parts), strict=True):
            yield Continuation(entry, facts, top)


def _spooled(folder: Path, pairs: Sequence[Pair]) -> Spool:
    writer = EntryWriter(folder, durable=False)
    for index, (context, targets) in enumerate(pairs):
        writer.add((index, MAIN), context, targets)
    writer.finish()
    return Spool.open(folder)
