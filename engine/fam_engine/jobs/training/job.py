"""The training job from its settings to its files.

In: a `TrainConfig` and somebody to tell about progress. Out: the adapter, the log, the summary, and a `TrainOutcome`.
Whatever stops the job, the same command goes on from the newest checkpoint, and the adapter comes out the same to the
last bit. Several processes may do the job together: the first reads and writes, the others are told what it has read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fam_engine.config import TrainConfig
from fam_engine.data.files import write_folder_whole, write_json_whole
from fam_engine.jobs.interrupts import Interrupted, Interrupts
from fam_engine.jobs.journal import Journal, check_unclaimed, storage_errors
from fam_engine.jobs.outputs import OUTPUTS as ALL_OUTPUTS
from fam_engine.jobs.progress import Nobody, Progress
from fam_engine.jobs.quarantine import read_quarantine, write_quarantine
from fam_engine.jobs.running import describe, finished_summary
from fam_engine.jobs.sources import Sources, open_model
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.jobs.training.budget import (
    MemoryNeeds,
    MemoryPlan,
    check_memory,
    describe_plan,
    host_share,
    least_plan,
    memory_needs,
    num_trainable,
    plan_for,
    process_share,
)
from fam_engine.jobs.training.card import CARD, METADATA, metadata, model_card
from fam_engine.jobs.training.checkpoint_steps import CHECKPOINTS
from fam_engine.jobs.training.checkpoints import Checkpoints, RunState
from fam_engine.jobs.training.crashes import CrashWatch
from fam_engine.jobs.training.given import Given
from fam_engine.jobs.training.loop import LoopParts, TrainingLoop, planned_steps
from fam_engine.jobs.training.peers import Peers, joined
from fam_engine.jobs.training.prepare import Prepared, prepared
from fam_engine.jobs.training.processes import run_processes
from fam_engine.jobs.training.summary import summarize_run
from fam_engine.model.adapter_files import save_adapter
from fam_engine.model.config import ModelConfig
from fam_engine.model.devices import choose_compute_dtype, choose_device
from fam_engine.model.lora import LoraSpec
from fam_engine.model.memory import num_multiprocessors
from fam_engine.model.trainable import TrainableModel

ADAPTER = "adapter"
OUTPUTS = ALL_OUTPUTS["train"]
# All that a job writes into its folder.
WRITTEN = (ADAPTER, CHECKPOINTS, *OUTPUTS)


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


def run_train(config: TrainConfig, progress: Progress) -> TrainOutcome:
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


def _lead(config: TrainConfig, progress: Progress, together: _Together) -> dict[str, Any]:
    """Be the first process: read the input, run the loop, write the output."""
    watch, peers = Stopwatch(), together.peers
    check_unclaimed(config.out, WRITTEN)
    with prepared(config, config.out, progress, together.interrupts) as data:
        summary = finished_summary(data.journal, config.out, OUTPUTS, progress)
        if summary is None:
            given = Given.of(data)
            peers.share(given.to_json())
            with data.journal.beginning():
                parts = _open_parts(config, given, progress, together, data.journal)
            state = _run_loop(parts, together)
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
        _run_loop(_open_parts(config, given, Nobody(), together, None), together)
    summary: dict[str, Any] = together.peers.share(None)
    return summary


def _run_loop(parts: LoopParts, together: _Together) -> RunState:
    loop = TrainingLoop(parts)
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
    progress: Progress,
    together: _Together,
    journal: Journal | None,
) -> LoopParts:
    """Plan the memory, load the model; give what the loop works with."""
    spec, peers = lora_spec(config), together.peers
    progress.start("loading the model", None, "")
    chosen = memory_plan(config, given, spec, journal, peers.size)
    # What the first process has planned holds for all.
    memory = MemoryPlan(**peers.share(asdict(chosen)))
    decoder = open_model(config, Sources((), given.model, None, None))
    progress.note(
        f"{describe(decoder)}; "
        f"{num_trainable(decoder.config, spec) / 1e6:.2f} M trained, "
        f"{memory.max_tokens} tokens a micro-batch"
        + (f", {peers.size} processes" if peers.size > 1 else "")
    )
    progress.note(describe_plan(memory))
    if journal:
        with journal.commit():
            journal.put("num_steps", planned_steps(config, given.train))
    return LoopParts(
        config=config,
        decoder=decoder,
        model=TrainableModel(decoder, spec, seed=config.seed),
        train=given.train,
        validation=given.validation,
        memory=memory,
        checkpoints=Checkpoints(config.out / CHECKPOINTS, given.run),
        crashes=CrashWatch(journal, given.train, given.validation),
        progress=progress,
        peers=peers,
        check=together.check,
    )


def memory_plan(
    config: TrainConfig, given: Given, spec: LoraSpec, journal: Journal | None, num_processes: int
) -> MemoryPlan:
    """Plan for what this process may take.

    The token budget, once chosen, is always the same: bits depend on it. What layers keep is
    planned anew whenever the run goes on, maybe on another machine: no bit depends on that.

    Args:
        config: The settings.
        given: The input.
        spec: The adapter's form.
        journal: Where the token budget is kept; None: nowhere.
        num_processes: Of the run, on this machine.

    Raises:
        DeviceError: The model, with its longest record, does not fit.
    """
    device = choose_device(config.device)
    needs = needs_here(config, ModelConfig.from_folder(given.model), spec)
    free, host_free = process_share(device, num_processes), host_share(device, num_processes)
    check_memory(least_plan(needs, given.longest, host_free), free, device)
    kept: int | None = journal.get("max_tokens_per_batch") if journal else None
    budget = kept or config.max_tokens_per_batch
    plan = plan_for(
        needs, free, device, longest=given.longest, max_tokens=budget, host_free=host_free
    )
    if journal and not kept:
        with journal.commit():
            journal.put("max_tokens_per_batch", plan.max_tokens)
    return plan


def needs_here(config: TrainConfig, model: ModelConfig, spec: LoraSpec) -> MemoryNeeds:
    """Say what a run needs of the device it will take."""
    device = choose_device(config.device)
    return memory_needs(
        model,
        spec,
        precision=config.precision,
        compute_dtype=choose_compute_dtype(
            config.compute_dtype, precision=config.precision, device=device
        ),
        device=device,
        optimizer=config.optimizer,
        num_multiprocessors=num_multiprocessors(device),
    )


def _write_outputs(
    parts: LoopParts, data: Prepared, state: RunState, watch: Stopwatch
) -> dict[str, Any]:
    config, out = parts.config, parts.config.out
    quarantined = write_quarantine(out / "quarantine.jsonl", read_quarantine(data.journal.db))
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
    write_json_whole(out / "summary.json", summary)
    return summary
