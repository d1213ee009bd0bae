"""`fam_engine.Generator`: the generating job for other programs, records in memory instead of files.

In: questions as dicts of the forms files may have. Out: the records `fam-engine generate` writes, as dicts. It runs the
job's own passes in a temporary folder, so that there is one way to generate and not a second one to keep equal to it.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fam_engine.arguments import check_whole_number
from fam_engine.config import ComputeDtype, Device, Precision
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.generation.files import Origin, generated_records
from fam_engine.jobs.generation.ingest import IngestPlan, ingest_questions
from fam_engine.jobs.generation.judging import judge_texts
from fam_engine.jobs.generation.texts import SCHEMA, TextMaker
from fam_engine.jobs.given_records import raise_first_fault, record_lines
from fam_engine.jobs.journal import Journal
from fam_engine.model.folders import resolve_model
from fam_engine.model.generation import generator
from fam_engine.model.generation.requests import Sampling
from fam_engine.model.loading import load_model

# Of a question whose answers have no text: they are left out, and that is all.
_NO_TEXT = ("E_EMPTY_RESPONSE",)


class Generator:
    r"""Answers questions with one model, loaded once. Threads may share it: their calls take turns.

    Args:
        model: Model folder, or `embedded`.
        adapter: PEFT LoRA folder to apply.
        precision: Of the weights: `nf4`, `bf16` or `fp32`.
        compute_dtype: `auto`, `bf16` or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        template: `auto`, `none` or a template file.
        chat_template_kwargs: What else the template is told, as `enable_thinking`.

    Raises:
        ModelRefusedError: The model cannot be used.
        DeviceError: The device is not there.

    Example:
        >>> generator = Generator("embedded")
        >>> [record] = generator.generate([{"prompt": "What is 2 + 3?\n"}])
        >>> record["provenance"]["finish_reason"]
        'eos'
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
    ) -> None:
        # Calls share the memory that matrices are made ready in, and the template's child process.
        self._one_at_a_time = threading.Lock()
        self._names = str(model), None if adapter is None else str(adapter)
        decoder = load_model(
            model,
            adapter=adapter,
            precision=precision,
            compute_dtype=compute_dtype,
            device=device,
        )
        self._max_length = decoder.config.max_position_embeddings
        folder, _ = resolve_model(model, download=False)
        self._encoder = TextEncoder(
            folder, template=template, chat_template_kwargs=chat_template_kwargs
        )
        self._generator = generator.Generator(decoder, self._encoder)

    def __enter__(self) -> Generator:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the template's child process."""
        self.close()

    def close(self) -> None:
        """Let go of the template's child process."""
        self._encoder.close()

    def generate(
        self,
        records: Iterable[Mapping[str, Any]],
        sampling: Sampling | None = None,
        *,
        samples: int = 1,
        seed: int = 0,
    ) -> list[dict[str, Any]]:
        """Answer records.

        Args:
            records: Dicts of any form a data file may have, all of one form; answers are not read.
            sampling: How tokens are chosen; greedy by default.
            samples: Answers to each.
            seed: Of the random choices.

        Returns:
            Records with their answers as `generated.jsonl` has them, in order; answers without a
            text are left out.

        Raises:
            InputError: A record cannot be used; the message names it, counted from 1.
            UsageError: `samples` is no whole number above 0, or `seed` none at all; or several samples without
                a temperature, which would all be the same text; or `max_new_tokens` leaves no room for a prompt.
        """
        sampling = sampling or Sampling()
        _check_samples(samples, sampling)
        check_whole_number("seed", seed)
        self._check_room(sampling.max_new_tokens)
        with tempfile.TemporaryDirectory(prefix="fam-engine-") as folder:
            data = Path(folder) / "records.jsonl"
            with data.open("w", encoding="utf-8") as file:
                file.writelines(record_lines(records))
            plan = IngestPlan(
                max_length=self._max_length,
                max_new_tokens=sampling.max_new_tokens,
                on_long="quarantine",
                columns={},
                limit=None,
                seed=int(seed),
            )
            # The records are written before: what gives them may itself call this generator.
            with self._one_at_a_time, Journal(Path(folder) / "state", {}, SCHEMA) as journal:
                files = [DataFile("records", data)]
                self._ingest(journal, plan, files)
                TextMaker(self._generator, journal, sampling, samples).run(_nothing, _nothing)
                raise_first_fault(journal, but=_NO_TEXT)
                judge_texts(journal, _nothing)
                model, adapter = self._names
                origin = Origin(
                    source=Path(model).name, model=model, adapter=adapter, seed=int(seed)
                )
                return list(generated_records(journal, origin))

    def _ingest(self, journal: Journal, plan: IngestPlan, files: Sequence[DataFile]) -> None:
        """Read the questions, and tell the first fault before the others are answered for nothing."""
        try:
            ingest_questions(journal, self._encoder, plan, files, _nothing)
        except InputError as error:
            # Where not one record is usable it is still the first that is told about, as among others.
            if error.code != "E_INPUT_UNUSABLE":
                raise
        raise_first_fault(journal)

    def _check_room(self, max_new_tokens: int) -> None:
        if max_new_tokens >= self._max_length:
            message = (
                f"max_new_tokens {max_new_tokens} leaves no room for a prompt, expected less than "
                f"{self._max_length}, the model's longest sequence"
            )
            raise UsageError(message, code="E_CONFIG_VALUE")


def _check_samples(samples: int, sampling: Sampling) -> None:
    check_whole_number("samples", samples, least=1)
    if samples > 1 and sampling.temperature == 0:
        message = f"{samples} samples at temperature 0 would all be the same text"
        raise UsageError(
            message, code="E_CONFIG_VALUE", hint="give a Sampling with a temperature above 0"
        )


def _nothing(_count: int) -> None:
    """Tell nobody."""
