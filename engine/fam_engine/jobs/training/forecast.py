"""The dry run: what training would take and what it would learn, without loading the model.

In: a `TrainConfig`. Out: a `TrainForecast`. Counts are exact, they come from the real pass 1 and the real order of
steps; memory is computed from the shapes; time comes from a trial with two layers of the model's shape.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fam_engine.config import TrainConfig
from fam_engine.data.packing import Entries, on_grid
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.quarantine import quarantined_by_code
from fam_engine.jobs.scoring.report import token_texts
from fam_engine.jobs.training.budget import MemoryNeeds, StepPlan, num_trainable, process_share
from fam_engine.jobs.training.cards import plan_cards
from fam_engine.jobs.training.given import Given
from fam_engine.jobs.training.job import lora_spec, memory_plan, needs_here
from fam_engine.jobs.training.loop import loss_settings, planned_steps
from fam_engine.jobs.training.order import StepOrder
from fam_engine.jobs.training.prepare import Prepared, prepared
from fam_engine.jobs.training.steps import micro_batches, shared_out
from fam_engine.jobs.training.summary import count_examples, count_flags
from fam_engine.jobs.training.trial import seconds_a_token
from fam_engine.model.config import ModelConfig
from fam_engine.model.devices import choose_compute_dtype, choose_device
from fam_engine.model.training.recomputation import BatchShape

_NUM_SHOWN = 3
# Steps whose micro-batches are planned to see how large they are.
_NUM_PLANNED = 20
# Enough for a trial to tell; a whole micro-batch of a large model would take a CPU minutes.
_TRIAL_TOKENS = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class TrainForecast:
    """What a job would do, from a dry run.

    Attributes:
        examples: Records read, trained on, held out, left out.
        quarantined: Records that would be left out, by code.
        flags: Records by what is unusual about them.
        shown: Some examples: prompt, and the texts of the supervised tokens.
        steps: Number of steps.
        epochs: How often every example comes.
        tokens: Of an epoch: all, supervised, computed (shared prompts once).
        micro_batches: Mean number a step.
        num_trainable: Trained parameters.
        max_tokens_per_batch: Token budget of a micro-batch.
        num_processes: Processes that train together; what follows is of each.
        memory: The fields of `MemoryPlan`, estimated.
        memory_bytes: All of it.
        free_bytes: What a process may take now.
        cards: For GPUs of common sizes, the fields of `CardPlan`.
        seconds: Time of the steps, from a trial on this machine, by one process.
    """

    examples: dict[str, Any]
    quarantined: dict[str, int]
    flags: dict[str, int]
    shown: list[dict[str, Any]]
    steps: int
    epochs: float
    tokens: dict[str, int]
    micro_batches: float
    num_trainable: int
    max_tokens_per_batch: int
    num_processes: int
    memory: dict[str, int]
    memory_bytes: int
    free_bytes: int
    cards: list[dict[str, Any]]
    seconds: float


def forecast_train(config: TrainConfig, progress: Progress) -> TrainForecast:
    """Read the records, plan the steps, and say what training on them would take.

    Raises:
        FamEngineError: As `run_train` would, for data, template, tokenizer and settings.
    """
    spec = lora_spec(config)
    with (
        tempfile.TemporaryDirectory(prefix="fam-engine-") as folder,
        Interrupts() as interrupts,
        prepared(config, Path(folder), progress, interrupts) as data,
    ):
        model = ModelConfig.from_folder(data.sources.model)
        device = choose_device(config.device)
        dtype = choose_compute_dtype(
            config.compute_dtype, precision=config.precision, device=device
        )
        given = Given.of(data)
        memory = memory_plan(config, given, spec, None, config.nproc)
        order = StepOrder(data.train.entries, batch_size=config.batch_size, seed=config.seed)
        steps = planned_steps(config, data.train)
        plans = [
            shared_out(data.train, order.step_entries(step), memory.max_tokens, config.nproc)
            for step in range(min(steps, order.steps_per_epoch, _NUM_PLANNED))
        ]
        tokens = _tokens(data, plans)
        num_again = _layers_again(data, plans, needs_here(config, model, spec), memory.step)
        quarantined = quarantined_by_code(data.journal.db)
        progress.start("timing layers of this shape", None, "")
        return TrainForecast(
            examples=count_examples(data, quarantined),
            quarantined=quarantined,
            flags=count_flags(data),
            shown=[_shown(data, int(entry)) for entry in data.train.entries[:_NUM_SHOWN]],
            steps=steps,
            epochs=steps / order.steps_per_epoch,
            tokens=tokens,
            micro_batches=sum(map(len, plans)) / len(plans),
            num_trainable=num_trainable(model, spec),
            max_tokens_per_batch=memory.max_tokens,
            num_processes=config.nproc,
            memory=asdict(memory),
            memory_bytes=memory.total,
            free_bytes=process_share(device, config.nproc),
            cards=[asdict(card) for card in plan_cards(config, model, spec, given.longest)],
            seconds=steps
            / order.steps_per_epoch
            * _epoch_seconds(config, model, data, num_again, dtype, device),
        )


def _tokens(data: Prepared, plans: list[list[Entries]]) -> dict[str, int]:
    """Count an epoch's tokens; those computed are scaled up from the steps planned."""
    train = data.train
    planned = np.concatenate([entries for plan in plans for entries in plan])
    whole = train.num_tokens(planned)
    shared = sum(_tokens_shared(data, entries) for plan in plans for entries in plan)
    total = train.num_tokens(train.entries)
    return {
        "all": total,
        "supervised": train.num_targets(train.entries),
        "computed": round(total * (whole - shared) / whole),
    }


def _tokens_shared(data: Prepared, entries: Entries) -> int:
    """Count the prompt tokens of a micro-batch that need no computing of their own."""
    hashes = data.train.spool.index()["context_hash"][entries]
    _, first = np.unique(hashes, return_index=True)
    lengths = data.train.context_len[entries]
    return int(lengths.sum() - lengths[first].sum())


def _layers_again(
    data: Prepared, plans: list[list[Entries]], needs: MemoryNeeds, plan: StepPlan
) -> float:
    """Give how many layers compute their activations again, on average over the tokens of the steps planned."""
    train, total, again = data.train, 0, 0
    for entries in (entries for batches in plans for entries in batches):
        num_tokens = train.num_tokens(entries)
        lengths = train.context_len[entries] + train.target_len[entries]
        batch = BatchShape(on_grid(num_tokens - _tokens_shared(data, entries)), int(lengths.max()))
        num_whole = needs.policy(batch, plan).num_whole
        again += num_tokens * (needs.num_layers - max(num_whole, 1))
        total += num_tokens
    return again / total


def _shown(data: Prepared, entry: int) -> dict[str, Any]:
    context, targets = data.train.spool.read(entry)
    tokenizer = data.encoder.tokenizer
    return {"prompt": tokenizer.decode(context), "supervised": token_texts(tokenizer, targets)}


def _epoch_seconds(
    config: TrainConfig,
    model: ModelConfig,
    data: Prepared,
    num_again: float,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Predict the time of an epoch from a trial with its first examples."""
    budget = _TRIAL_TOKENS[device.type]
    batch = micro_batches(data.train, data.train.entries[: config.batch_size], budget)[0]
    a_token = seconds_a_token(
        config,
        model,
        data.train,
        batch,
        num_again=num_again,
        spec=lora_spec(config),
        loss=loss_settings(config),
        dtype=dtype,
        device=device,
    )
    return a_token * data.train.num_tokens(data.train.entries)
