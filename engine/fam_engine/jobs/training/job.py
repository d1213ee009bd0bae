"""The training job from its settings to its files.

In: a `TrainConfig` and somebody to tell about progress. Out: the adapter, the log, the summary, and a `TrainOutcome`.
Whatever stops the job, the same command goes on from the newest checkpoint, and the adapter comes out the same to the
last bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fam_engine.config import TrainConfig
from fam_engine.data.files import write_folder_whole, write_text_whole
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import storage_errors
from fam_engine.jobs.running import describe, finished_summary
from fam_engine.jobs.scoring.files import write_quarantine
from fam_engine.jobs.scoring.sources import open_model
from fam_engine.jobs.scoring.stopwatch import Stopwatch
from fam_engine.jobs.training.budget import default_tokens, num_trainable
from fam_engine.jobs.training.card import CARD, METADATA, metadata, model_card
from fam_engine.jobs.training.checkpoints import Checkpoints, RunState
from fam_engine.jobs.training.crashes import CrashWatch
from fam_engine.jobs.training.log import NAME as LOG
from fam_engine.jobs.training.loop import LoopParts, TrainingLoop, TrainProgress
from fam_engine.jobs.training.prepare import Prepared, prepared
from fam_engine.jobs.training.summary import summarize_run
from fam_engine.model.adapter_files import save_adapter
from fam_engine.model.decoder import Decoder
from fam_engine.model.lora import LoraSpec
from fam_engine.model.trainable import TrainableModel

ADAPTER = "adapter"
OUTPUTS = (f"{ADAPTER}/adapter_model.safetensors", LOG, "quarantine.jsonl", "summary.json")


@dataclass(frozen=True)
class TrainOutcome:
    """A finished job.

    Attributes:
        summary: What `summary.json` holds.
        num_quarantined: Records left out.
        adapter: The adapter's folder.
    """

    summary: dict[str, Any]
    num_quarantined: int
    adapter: Path


def run_train(config: TrainConfig, progress: TrainProgress) -> TrainOutcome:
    """Train an adapter, or go on where an earlier run of the same job stopped.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        DivergedError: The run is lost; its checkpoints are kept.
        Interrupted: A signal came; what is done is kept.
    """
    watch, spec = Stopwatch(), lora_spec(config)
    with (
        Interrupts() as interrupts,
        prepared(config, config.out, progress, interrupts) as data,
    ):
        summary = finished_summary(data.journal, config.out, OUTPUTS, progress)
        if summary is None:
            loop, parts = _open_loop(config, spec, data, progress, interrupts)
            with interrupts.held():
                state = loop.run(config.out)
            progress.start("writing", None, "files")
            with storage_errors(config.out):
                summary = _write_outputs(parts, data, state, watch)
            with data.journal.commit():
                data.journal.put("finished", summary)
        return TrainOutcome(summary, summary["examples"]["quarantined"], config.out / ADAPTER)


def lora_spec(config: TrainConfig) -> LoraSpec:
    """Give the form of the adapter.

    Raises:
        UsageError: There is no such form.
    """
    return LoraSpec(
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        target_modules=config.target_modules,
        use_rslora=config.rslora,
    )


def _open_loop(
    config: TrainConfig,
    spec: LoraSpec,
    data: Prepared,
    progress: TrainProgress,
    interrupts: Interrupts,
) -> tuple[TrainingLoop, LoopParts]:
    progress.start("loading the model", None, "")
    decoder = open_model(config, data.sources)
    budget = _micro_batch_budget(config, data, decoder)
    progress.note(
        f"{describe(decoder)}; "
        f"{num_trainable(decoder.config, spec) / 1e6:.2f} M trained, {budget} tokens a micro-batch"
    )
    parts = LoopParts(
        config=config,
        decoder=decoder,
        model=TrainableModel(decoder, spec, seed=config.seed),
        train=data.train,
        validation=data.validation,
        checkpoints=Checkpoints(config.out / "checkpoints", data.run),
        crashes=CrashWatch(data.journal, data.train, data.validation),
        progress=progress,
        check=interrupts.check,
    )
    loop = TrainingLoop(parts, budget)
    with data.journal.commit():
        data.journal.put("num_steps", loop.num_steps)
    return loop, parts


def _micro_batch_budget(config: TrainConfig, data: Prepared, decoder: Decoder) -> int:
    """Give the token budget of a micro-batch, once chosen always the same: bits depend on it."""
    kept: int | None = data.journal.get("max_tokens_per_batch")
    if kept is not None:
        return kept
    budget = config.max_tokens_per_batch or default_tokens(
        decoder.config, decoder.device, decoder.compute_dtype
    )
    with data.journal.commit():
        data.journal.put("max_tokens_per_batch", budget)
    return budget


def _write_outputs(
    parts: LoopParts, data: Prepared, state: RunState, watch: Stopwatch
) -> dict[str, Any]:
    config, out = parts.config, parts.config.out
    quarantined = write_quarantine(out / "quarantine.jsonl", data.journal.db)
    summary = summarize_run(parts, data, state, quarantined, watch.seconds())
    parameters = parts.model.parameters
    if state.best_step is not None:
        parameters = parts.checkpoints.parameters(state.best_step)

    def write(folder: Path) -> None:
        save_adapter(folder, parts.model.spec, parameters, base_model_name_or_path=config.model)
        (folder / CARD).write_text(model_card(summary), encoding="utf-8")
        (folder / METADATA).write_text(metadata(summary), encoding="utf-8")

    write_folder_whole(out / ADAPTER, write)
    write_text_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
