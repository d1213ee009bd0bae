"""The dry run: what generating would take, without loading the model.

In: a `GenerateConfig`. Out: a `GenerateForecast`. Counts of prompts are exact, they come from the real pass 1; what the
model will write is not known, so tokens and time are those of answers that all reach `--max-new-tokens`. Time comes
from a trial with two layers of the model's shape.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fam_engine.config import GenerateConfig
from fam_engine.data.tokenizer import Ids
from fam_engine.jobs.generation.prepare import prepared
from fam_engine.jobs.generation.trial import NUM_PROMPTS, try_writing
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import quarantined_by_code
from fam_engine.measure.lengths import typical_lengths
from fam_engine.model.checkpoint import linear_shapes
from fam_engine.model.config import ModelConfig
from fam_engine.model.devices import choose_compute_dtype, choose_device
from fam_engine.model.generation.cache import bytes_per_position
from fam_engine.model.memory import weight_bytes


@dataclass(frozen=True)
class GenerateForecast:
    """What a job would do, from a dry run.

    Attributes:
        num_records: Records that would be answered.
        num_samples: Answers to each.
        quarantined: Records that would be left out, by code.
        prompt: The first prompt, as the model would see it.
        prompt_tokens: Of all prompts together.
        lengths: Mean, median, 95th percentile and maximum of prompt tokens.
        most_tokens: Of all answers, if each has --max-new-tokens.
        memory_bytes: Weights and cache, estimated.
        seconds: Time if every answer is as long as allowed, from a trial on this machine.
    """

    num_records: int
    num_samples: int
    quarantined: dict[str, int]
    prompt: str
    prompt_tokens: int
    lengths: dict[str, float]
    most_tokens: int
    memory_bytes: int
    seconds: float


def forecast_generate(config: GenerateConfig, progress: Progress) -> GenerateForecast:
    """Read the records and say what answering them would take.

    Raises:
        FamEngineError: As `run_generate` would, for data, template and tokenizer.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fam-engine-") as folder,
        Interrupts() as interrupts,
        prepared(config, Path(folder), progress, interrupts) as parts,
    ):
        journal, model = parts.journal, parts.model
        counts = _prompt_lengths(journal)
        num_texts = len(counts) * config.samples
        device = choose_device(config.device)
        dtype = choose_compute_dtype(
            config.compute_dtype, precision=config.precision, device=device
        )
        longest = int(counts.max()) + config.max_new_tokens
        num_slots = min(config.max_slots, num_texts)
        speed = try_writing(
            model,
            parts.encoder,
            _first_prompts(journal),
            parts.sampling,
            num_slots=num_slots,
            precision=config.precision,
            dtype=dtype,
            device=device,
        )
        a_slot = longest * bytes_per_position(model, dtype) + 4 * model.vocab_size
        return GenerateForecast(
            num_records=len(counts),
            num_samples=config.samples,
            quarantined=quarantined_by_code(journal.db),
            prompt=journal.get("example"),
            prompt_tokens=int(counts.sum()),
            lengths=typical_lengths(counts),
            most_tokens=num_texts * config.max_new_tokens,
            memory_bytes=weight_bytes(model, config.precision, dtype)
            + _ready_bytes(config, model, dtype, device)
            + num_slots * a_slot,
            seconds=speed.seconds(
                num_prompt_tokens=int(counts.sum()),
                num_tokens=num_texts * config.max_new_tokens,
                longest=config.max_new_tokens,
            ),
        )


def _first_prompts(journal: Journal) -> list[Ids]:
    query = f"SELECT context FROM questions ORDER BY position LIMIT {NUM_PROMPTS}"
    return [np.frombuffer(context, np.int32) for (context,) in journal.db.execute(query)]


def _ready_bytes(
    config: GenerateConfig, model: ModelConfig, dtype: torch.dtype, device: torch.device
) -> int:
    """Give the bytes of matrices kept as they are multiplied, beside the stored ones."""
    if (device.type, config.precision) == ("cuda", "nf4"):  # a GPU multiplies NF4
        return 0
    stored = {"nf4": None, "bf16": torch.bfloat16, "fp32": torch.float32}[config.precision]
    if stored == dtype and config.adapter is None:
        return 0
    shapes = linear_shapes(model).values()
    return model.num_layers * sum(rows * columns for rows, columns in shapes) * dtype.itemsize


def _prompt_lengths(journal: Journal) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    rows = journal.db.execute("SELECT num_prompt_tokens FROM questions")
    return np.fromiter((row[0] for row in rows), np.int64)
