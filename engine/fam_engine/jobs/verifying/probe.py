"""The answers an adapter is verified with, as token ids.

In: data files, by scoring's own pass 1. Out: a `Probe`, whose tokens any model can be asked about. So an answer has the
tokens, and on our own engine the bits, `fam-engine score` gives it. The end of the turn is left out, as it is there.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fam_engine._rust_tokenize import Spool
from fam_engine.config import VerifyConfig
from fam_engine.data.packing import Int32
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError
from fam_engine.jobs.beginning import shown_form
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import quarantined_by_code
from fam_engine.jobs.scoring import ingest
from fam_engine.jobs.scoring.continuations import entry_continuations
from fam_engine.jobs.scoring.ingest import IngestPlan, ingest_records
from fam_engine.jobs.sources import tokens_per_batch
from fam_engine.measure.agreement import TokenLogprobs
from fam_engine.measure.statistics import Floats, Ints
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder

# Of one answer's tokens: log-probs, and whether each is the model's first choice.
AnswerRow = tuple[Floats, npt.NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Probe:
    """n answers.

    Attributes:
        ids: Names of the answers.
        groups: Their questions.
        left_out: Records left out, by code.
        spool: Where their token ids are.
        entries: int64[n], their entries there.
        lengths: int64[n], tokens of each answer, at least one.
    """

    ids: Sequence[str]
    groups: Sequence[str]
    left_out: Mapping[str, int]
    spool: Spool
    entries: Ints
    lengths: Ints

    def answers(self, decoder: Decoder, advance: Callable[[int], None]) -> TokenLogprobs:
        """Ask a model of ours.

        Args:
            decoder: The model.
            advance: Called with the number of answers done since the last call.
        """
        budget = tokens_per_batch(None, decoder)
        found = {}
        results = entry_continuations(decoder, self.spool, self.entries, max_tokens=budget)
        for result in results:
            found[result.index] = result.facts
            advance(1)
        in_order = zip(self.entries.tolist(), self.lengths.tolist(), strict=True)
        facts = [found[entry].slice(0, length) for entry, length in in_order]
        return self.gathered([(one.logprobs, one.ranks == 1) for one in facts])

    def texts(self) -> Iterator[tuple[Int32, Int32]]:
        """Give the ids of each context and of the answer to it."""
        for entry, length in zip(self.entries.tolist(), self.lengths.tolist(), strict=True):
            context, targets = self.spool.read(entry)
            yield context, targets[:length]

    def gathered(self, rows: Sequence[AnswerRow]) -> TokenLogprobs:
        """Join the log-probs of each answer, and whether each token comes first.

        Raises:
            InputError: A log-prob is not finite.
        """
        logprobs, is_first = (np.concatenate(column) for column in zip(*rows, strict=True))
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        if not np.isfinite(logprobs).all():
            place = int(np.flatnonzero(~np.isfinite(logprobs))[0])
            name = self.ids[int(np.searchsorted(offsets, place, side="right")) - 1]
            message = f"the model gives a token of the answer `{name}` no finite log-prob"
            raise InputError(message, code="E_NONFINITE")
        return TokenLogprobs(logprobs, is_first, offsets)


@contextlib.contextmanager
def opened_probe(
    config: VerifyConfig,
    model: Path,
    files: tuple[DataFile, ...],
    progress: Progress,
    check: Callable[[], None],
    *,
    max_ids: int | None = None,
) -> Iterator[Probe]:
    """Read the answers, for as long as this lasts.

    Args:
        config: How.
        model: The model's folder.
        files: Where they are.
        progress: Is told the form of each file.
        check: Called now and then.
        max_ids: Most tokens of an answer and its context; None: as many as the model takes.

    Raises:
        FamEngineError: Records, template or tokenizer that cannot be used.
    """
    plan = IngestPlan(
        max_length=ModelConfig.from_folder(model).max_position_embeddings,
        on_long="quarantine",
        columns=config.map,
        limit=config.limit,
    )
    with (
        contextlib.closing(
            TextEncoder(
                model, template=config.template, chat_template_kwargs=config.chat_template_kwargs
            )
        ) as encoder,
        tempfile.TemporaryDirectory(prefix="fam-engine-") as name,
        Journal(Path(name), {}, ingest.SCHEMA) as journal,
    ):
        progress.start("reading", None, "records")
        with storage_errors(Path(name)):
            spool = ingest_records(journal, encoder, plan, files, lambda _: check())
        for form in journal.get("forms"):
            progress.note(shown_form(form))
        yield _probe(journal, spool, max_ids)


def _probe(journal: Journal, spool: Spool, max_ids: int | None) -> Probe:
    columns = "id, grp, entry, num_response_tokens, num_prompt_tokens + num_response_tokens"
    rows = journal.db.execute(f"SELECT {columns} FROM records ORDER BY entry").fetchall()
    some = [row for row in rows if row[3] > 0]
    short = [row for row in some if max_ids is None or row[4] <= max_ids]
    if not short:
        room = "" if max_ids is None else f" and at most {max_ids} in all, which the server takes"
        message = f"no answer has a token with something before it{room}, expected at least one"
        raise InputError(message, code="E_INPUT_UNUSABLE")
    left_out = Counter(quarantined_by_code(journal.db))
    left_out["E_NOTHING_SCORED"] += len(rows) - len(some)
    left_out["E_TOO_LONG"] += len(some) - len(short)
    ids, groups, entries, lengths, _ = zip(*short, strict=True)
    return Probe(ids, groups, +left_out, spool, np.array(entries), np.array(lengths))
