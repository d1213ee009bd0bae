"""`fam_engine.Scorer`: the scoring job for other programs, records in memory instead of files.

In: records as dicts of the forms files may have. Out: the same table `fam-engine score` writes, as a `pyarrow.Table`.
It runs the job's own two passes in a temporary folder, so that there is one way to score and not a second one to keep
equal to it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring.entries import SCHEMA, EntryScorer
from fam_engine.jobs.scoring.files import score_rows, scores_schema
from fam_engine.jobs.scoring.ingest import DataFile, IngestPlan, ingest_records
from fam_engine.model.loading import load_model, resolve_model
from fam_engine.model.memory import default_tokens_per_batch


class Scorer:
    r"""Scores answers with one model, loaded once.

    Args:
        model: Model folder, or `embedded`.
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        template: `auto`, `none` or a template file.
        max_tokens_per_batch: Token budget of a batch; None: from free memory.

    Raises:
        ModelRefusedError: The model cannot be used.
        DeviceError: The device is not there.

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
        max_tokens_per_batch: int | None = None,
    ) -> None:
        self._decoder = load_model(
            model,
            adapter=adapter,
            precision=precision,
            compute_dtype=compute_dtype,
            device=device,
        )
        folder, _ = resolve_model(model, download=False)
        self._encoder = TextEncoder(folder, template=template)
        self._budget = max_tokens_per_batch or default_tokens_per_batch(
            self._decoder.config, self._decoder.device, self._decoder.compute_dtype
        )

    def __enter__(self) -> Scorer:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the template's child process."""
        self.close()

    def close(self) -> None:
        """Let go of the template's child process."""
        self._encoder.close()

    def score(self, records: Iterable[Mapping[str, Any]]) -> pa.Table:
        """Score records.

        Args:
            records: Dicts of any form a data file may have, all of one form.

        Returns:
            A row a record, in order, with the columns of `scores.parquet`; `file` is `records`.

        Raises:
            InputError: A record cannot be used; the message names it, counted from 1.
        """
        with tempfile.TemporaryDirectory(prefix="fam-engine-") as folder:
            data = Path(folder) / "records.jsonl"
            with data.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(dict(record)) + "\n" for record in records)
            schema = scores_schema(ifd=False, in_context=False)
            with Journal(Path(folder) / "state", {}, SCHEMA) as journal:
                self._run(journal, data)
                return pa.Table.from_pylist(list(score_rows(journal.db)), schema=schema)

    def token_logprobs(self, prompt: str, response: str) -> npt.NDArray[np.float64]:
        """Give the log-prob of every response token, nats, float64 [number of response tokens].

        Raises:
            InputError: The response is empty, or the record longer than the model.
        """
        with tempfile.TemporaryDirectory(prefix="fam-engine-") as folder:
            data = Path(folder) / "records.jsonl"
            record = {"prompt": prompt, "response": response}
            data.write_text(json.dumps(record) + "\n", encoding="utf-8")
            with Journal(Path(folder) / "state", {}, SCHEMA) as journal:
                scorer = self._run(journal, data, keep_tokens=True)
                (blob,) = scorer.journal.db.execute("SELECT logprobs FROM tokens").fetchone()
                (count,) = journal.db.execute("SELECT num_response_tokens FROM records").fetchone()
        return np.frombuffer(blob, np.float64)[:count]

    def _run(self, journal: Journal, data: Path, *, keep_tokens: bool = False) -> EntryScorer:
        plan = IngestPlan(self._decoder.config.max_position_embeddings, "quarantine")
        spool = ingest_records(journal, self._encoder, plan, [DataFile("records", data)], _nothing)
        scorer = EntryScorer(self._decoder, journal, spool, keep_tokens=keep_tokens)
        scorer.run(self._budget, _nothing)
        bad = journal.db.execute("SELECT line, code, reason FROM quarantine").fetchone()
        if bad is not None:
            raise InputError(bad[2], code=bad[1], where=f"record {bad[0]}")
        return scorer


def _nothing(_count: int) -> None:
    """Tell nobody."""
