"""The training job from its settings to its files.

In: a `TrainConfig` and somebody to tell about progress. Out: the adapter, the log, the summary, and a `TrainOutcome`.
Whatever stops the job, the same command goes on from the newest checkpoint, and the adapter comes out the same to the
last bit. Several processes may do the job together: the first reads and writes, the others are told what it has read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fam_engine.config import TrainConfig
from fam_engine.data.files import write_folder_whole, write_text_whole
from fam_engine.jobs.interrupts import Interrupted, Interrupts
from fam_engine.jobs.journal import Journal, storage_errors
from fam_engine.jobs.running import Nobody, describe, finished_summary
from fam_engine.jobs.scoring.files import write_quarantine
from fam_engine.jobs.scoring.sources import Sources, open_model
from fam_engine.jobs.scoring.stopwatch import Stopwatch
from fam_engine.jobs.training.budget import (
    check_memory,
    default_tokens,
    num_trainable,
    plan_memory,
    process_share,
)
from fam_engine.jobs.training.card import CARD, METADATA, metadata, model_card
from fam_engine.jobs.training.checkpoints import Checkpoints, RunState
from fam_engine.jobs.training.crashes import CrashWatch
from fam_engine.jobs.training.given import Given
from fam_engine.jobs.training.log import NAME as LOG
from fam_engine.jobs.training.loop import LoopParts, TrainingLoop, TrainProgress, planned_steps
from fam_engine.jobs.training.peers import Peers, joined
from fam_engine.jobs.training.prepare import Prepared, prepared
from fam_engine.jobs.training.processes import run_processes
from fam_engine.jobs.training.summary import summarize_run
from fam_engine.model.adapter_files import save_adapter
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.loading import choose_compute_dtype, choose_device
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

    Called in each process of a torch process group, or of torchrun, these train it together, and all come to the same.

    Raises:
        FamEngineError: Something its user can cure; see the subclasses.
        DivergedError: The run is lost; its checkpoints are kept.
        Interrupted: A signal came; what is done is kept.
    """
    if config.nproc > 1:
        run_processes(config, progress)
        summary = json.loads((config.out / "summary.json").read_text(encoding="utf-8"))
    else:
        with Interrupts() as interrupts, joined(config.device) as peers:
            if peers.rank == 0:
                summary = _lead(config, progress, _Together(peers, interrupts))
            else:
                summary = _follow(config, _Together(peers, interrupts))
    return TrainOutcome(summary, summary["examples"]["quarantined"], config.out / ADAPTER)


@dataclass(frozen=True)
class _Together:
    """The processes of a run, and the signals that come to this one."""

    peers: Peers
    interrupts: Interrupts

    def check(self) -> None:
        """Raise `Interrupted`, on all processes, if a signal has come to one of them."""
        (number,) = max(self.peers.gather([self.interrupts.caught]))
        if number:
            raise Interrupted(int(number))


def _lead(config: TrainConfig, progress: TrainProgress, together: _Together) -> dict[str, Any]:
    """Be the first process: read the input, run the loop, write the output."""
    watch, peers = Stopwatch(), together.peers
    with prepared(config, config.out, progress, together.interrupts) as data:
        summary = finished_summary(data.journal, config.out, OUTPUTS, progress)
        if summary is None:
            given = Given.of(data)
            peers.share(given.to_json())
            parts, max_tokens = _open_parts(config, given, progress, together, data.journal)
            state = _run_loop(parts, max_tokens, together)
            progress.start("writing", None, "files")
            with storage_errors(config.out):
                summary = _write_outputs(parts, data, state, watch)
            with data.journal.commit():
                data.journal.put("finished", summary)
        else:
            peers.share(None)
        peers.share(summary)
    return summary


def _follow(config: TrainConfig, together: _Together) -> dict[str, Any]:
    """Be one of the other processes: run the same loop on what the first has read."""
    told = together.peers.share(None)
    if told is not None:
        given = Given.from_json(told)
        _run_loop(*_open_parts(config, given, Nobody(), together, None), together)
    summary: dict[str, Any] = together.peers.share(None)
    return summary


def _run_loop(parts: LoopParts, max_tokens: int, together: _Together) -> RunState:
    loop = TrainingLoop(parts, max_tokens)
    with together.interrupts.held():
        return loop.run(parts.config.out)


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


def _open_parts(
    config: TrainConfig,
    given: Given,
    progress: TrainProgress,
    together: _Together,
    journal: Journal | None,
) -> tuple[LoopParts, int]:
    """Load the model; give what the loop works with, and the token budget of a micro-batch."""
    spec, peers = lora_spec(config), together.peers
    progress.start("loading the model", None, "")
    _check_fit(config, given, spec, peers.size)
    decoder = open_model(config, Sources((), given.model, None, None))
    # The first process alone has the journal.
    chosen = _micro_batch_budget(config, journal, decoder, peers.size) if journal else None
    budget: int = peers.share(chosen)
    progress.note(
        f"{describe(decoder)}; "
        f"{num_trainable(decoder.config, spec) / 1e6:.2f} M trained, {budget} tokens a micro-batch"
        + (f", {peers.size} processes" if peers.size > 1 else "")
    )
    if journal:
        with journal.commit():
            journal.put("num_steps", planned_steps(config, given.train))
    parts = LoopParts(
        config=config,
        decoder=decoder,
        model=TrainableModel(decoder, spec, seed=config.seed),
        train=given.train,
        validation=given.validation,
        checkpoints=Checkpoints(config.out / "checkpoints", given.run),
        crashes=CrashWatch(journal, given.train, given.validation),
        progress=progress,
        peers=peers,
        check=together.check,
    )
    return parts, budget


def _check_fit(config: TrainConfig, given: Given, spec: LoraSpec, num_processes: int) -> None:
    """Refuse a model that, with its longest record, does not fit what this process may take."""
    device = choose_device(config.device)
    dtype = choose_compute_dtype(config.compute_dtype, precision=config.precision, device=device)
    plan = plan_memory(
        ModelConfig.from_folder(given.model),
        spec,
        given.longest,
        precision=config.precision,
        compute_dtype=dtype,
        optimizer=config.optimizer,
    )
    check_memory(plan, process_share(device, num_processes), device)


def _micro_batch_budget(
    config: TrainConfig, journal: Journal, decoder: Decoder, num_processes: int
) -> int:
    """Give the token budget of a micro-batch, once chosen always the same: bits depend on it."""
    kept: int | None = journal.get("max_tokens_per_batch")
    if kept is not None:
        return kept
    budget = config.max_tokens_per_batch or default_tokens(
        decoder.config, decoder.device, decoder.compute_dtype, num_processes
    )
    with journal.commit():
        journal.put("max_tokens_per_batch", budget)
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
        save_adapter(
            folder,
            parts.model.spec,
            parameters,
            base_model_name_or_path=config.model,
            base_fingerprint=parts.decoder.weights.fingerprint,
        )
        (folder / CARD).write_text(model_card(summary), encoding="utf-8")
        (folder / METADATA).write_text(metadata(summary), encoding="utf-8")

    write_folder_whole(out / ADAPTER, write)
    write_text_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
