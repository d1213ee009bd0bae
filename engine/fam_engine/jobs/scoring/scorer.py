"""`fam_engine.Scorer`: the scoring job for other programs, records in memory instead of files.

In: records as dicts of the forms files may have. Out: the same table `fam-engine score` writes, as a `pyarrow.Table`.
It runs the job's own two passes in a temporary folder, so that there is one way to score and not a second one to keep
equal to it.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fam_engine.arguments import check_whole_number
from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.given_records import left_out, raise_first_fault, record_lines
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring.entries import SCHEMA, EntryScorer
from fam_engine.jobs.scoring.files import score_rows, scores_schema
from fam_engine.jobs.scoring.ingest import IngestPlan, ingest_records
from fam_engine.jobs.sources import tokens_per_batch
from fam_engine.model.folders import resolve_model
from fam_engine.model.loading import load_model

_COLUMNS = scores_schema(ifd=False, in_context=False)
# What `score_each` gives.
EACH_COLUMNS = _COLUMNS.append(pa.field("error", pa.string()))


class Scorer:
    r"""Scores answers with one model, loaded once. Threads may share it: their calls take turns.

    Args:
        model: Model folder, or `embedded`.
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        template: `auto`, `none` or a template file.
        chat_template_kwargs: What else the template is told, as `enable_thinking`.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.
        exact: On a GPU too, the same bits whatever a record is scored with.

    Raises:
        ModelRefusedError: The model cannot be used.
        DeviceError: The device is not there.
        UsageError: `max_tokens_per_batch` is no whole number above 0.

    Example:
        >>> scorer = Scorer("embedded")
        >>> scorer.token_logprobs("What is 2 + 3?\n", "5").shape
        (1,)
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        precision: Precision = "nf4",
        compute_dtype: ComputeDtype = "auto",
        device: Device = "auto",
        template: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_tokens_per_batch: int | None = None,
        exact: bool = False,
    ) -> None:
        if max_tokens_per_batch is not None:
            check_whole_number("max_tokens_per_batch", max_tokens_per_batch, least=1)
        # Calls share the memory that matrices are made ready in, and the template's child process.
        self._one_at_a_time = threading.Lock()
        self._decoder = load_model(
            model,
            adapter=adapter,
            precision=precision,
            compute_dtype=compute_dtype,
            device=device,
            exact=exact,
        )
        self._folder, _ = resolve_model(model, download=False)
        self._encoder = TextEncoder(
            self._folder, template=template, chat_template_kwargs=chat_template_kwargs
        )
        # Without the template, once it is asked for.
        self._verbatim_encoder: TextEncoder | None = None
        self._budget = tokens_per_batch(max_tokens_per_batch, self._decoder)

    def __enter__(self) -> Scorer:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the template's child process."""
        self.close()

    def close(self) -> None:
        """Let go of the template's child process."""
        self._encoder.close()
        if self._verbatim_encoder is not None:
            self._verbatim_encoder.close()

    def score(self, records: Iterable[Mapping[str, Any]]) -> pa.Table:
        """Score records.

        Args:
            records: Dicts of any form a data file may have, all of one form.

        Returns:
            A row a record, in order, with the columns of `scores.parquet`; `file` is `records`.

        Raises:
            InputError: A record cannot be used; the message names it, counted from 1.
        """
        with _written(records) as (journal, data, _):
            self._run(journal, data)
            return pa.Table.from_pylist(list(score_rows(journal.db)), schema=_COLUMNS)

    def score_each(
        self, records: Iterable[Mapping[str, Any]], *, verbatim: bool = False
    ) -> pa.Table:
        """Score records, where one that cannot be used does not stop the others.

        Args:
            records: As for `score`.
            verbatim: Take prompts as they stand, as for a model without a chat template.

        Returns:
            A row a record, in order, with the columns of `scores.parquet` and `error`, a string with
            code and reason where a record could not be scored. All other columns are null then.

        Raises:
            InputError: They are no list.
        """
        refused: dict[int, str] = {}
        with _written(records, refused) as (journal, data, num_records):
            nothing = ("E_INPUT_UNUSABLE", "E_INPUT_EMPTY")
            self._score_usable(journal, data, unless=nothing, verbatim=verbatim)
            scored = {row["line"]: row for row in score_rows(journal.db)}
            told = {line: f"{code}: {reason}" for line, code, reason in left_out(journal)}
            errors = told | refused
        lines = range(1, num_records + 1)
        rows = [scored[line] if line in scored else {"error": errors[line]} for line in lines]
        return pa.Table.from_pylist(rows, schema=EACH_COLUMNS)

    def token_logprobs(self, prompt: str, response: str) -> npt.NDArray[np.float64]:
        """Give the log-prob of every response token, nats, float64 [number of response tokens].

        Raises:
            InputError: The response is empty, or the record longer than the model.
        """
        record = {"prompt": prompt, "response": response}
        with _written([record]) as (journal, data, _):
            self._run(journal, data, keep_tokens=True)
            (blob,) = journal.db.execute("SELECT logprobs FROM tokens").fetchone()
            (count,) = journal.db.execute("SELECT num_response_tokens FROM records").fetchone()
        return np.frombuffer(blob, np.float64)[:count]

    def _run(self, journal: Journal, data: Path, *, keep_tokens: bool = False) -> None:
        # Where not one record is usable it is still the first that is told about, as among others.
        nothing = ("E_INPUT_UNUSABLE",)
        self._score_usable(journal, data, unless=nothing, needs_all=True, keep_tokens=keep_tokens)
        raise_first_fault(journal)

    def _score_usable(
        self, journal: Journal, data: Path, *, unless: tuple[str, ...], **options: bool
    ) -> None:
        """Score what is usable, without a word where nothing is."""
        try:
            self._score(journal, data, **options)
        except InputError as error:
            if error.code not in unless:
                raise

    def _score(
        self,
        journal: Journal,
        data: Path,
        *,
        needs_all: bool = False,
        keep_tokens: bool = False,
        verbatim: bool = False,
    ) -> None:
        plan = IngestPlan(self._decoder.config.max_position_embeddings, "quarantine")
        files = [DataFile("records", data)]
        # Not around the reading of records: what gives them may itself call this scorer.
        with self._one_at_a_time:
            encoder = self._without_template() if verbatim else self._encoder
            spool = ingest_records(journal, encoder, plan, files, _nothing)
            if needs_all:  # before the others are scored for nothing
                raise_first_fault(journal)
            scorer = EntryScorer(self._decoder, journal, spool, keep_tokens=keep_tokens)
            scorer.run(self._budget, _nothing)

    def _without_template(self) -> TextEncoder:
        """Give the encoder of prompts that are taken as they stand."""
        if self._encoder.template is None:
            return self._encoder
        if self._verbatim_encoder is None:
            self._verbatim_encoder = TextEncoder(self._folder, template="none")
        return self._verbatim_encoder


@contextlib.contextmanager
def _written(
    records: Iterable[Mapping[str, Any]], refused: dict[int, str] | None = None
) -> Iterator[tuple[Journal, Path, int]]:
    """Write records to a file, for as long as this lasts; give a journal, the file, their number.

    Args:
        records: The records.
        refused: As of `record_lines`.
    """
    with tempfile.TemporaryDirectory(prefix="fam-engine-") as folder:
        data = Path(folder) / "records.jsonl"
        count = 0
        with data.open("w", encoding="utf-8") as file:
            lines = record_lines(records, refused=refused)
            for count, line in enumerate(lines, start=1):  # noqa: B007 - their number
                file.write(line)
        with Journal(Path(folder) / "state", {}, SCHEMA) as journal:
            yield journal, data, count


def _nothing(_count: int) -> None:
    """Tell nobody."""
