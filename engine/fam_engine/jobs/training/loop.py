"""The training loop: steps, validations, checkpoints, until the run is done or lost.

In: a model with fresh parameters, examples, settings. Out: the parameters as the last step left them, every step in the
log, the counters. All that a step does follows from its number, the parameters, the optimizer's state and the settings:
that is what a checkpoint holds, and why a run that goes on from one ends in the same bits. Several processes run the
same loop: what they decide by is the same on all, and the first alone writes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fam_engine.config import TrainConfig
from fam_engine.data.packing import Entries
from fam_engine.errors import DivergedError
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.jobs.training.budget import MemoryPlan
from fam_engine.jobs.training.checkpoints import Checkpoints, RunState
from fam_engine.jobs.training.crashes import CrashWatch
from fam_engine.jobs.training.divergence import WINDOW, DivergenceWatch, check_finite
from fam_engine.jobs.training.examples import Examples
from fam_engine.jobs.training.log import SilentLog, StepReport, TrainingLog
from fam_engine.jobs.training.losses import LossSettings
from fam_engine.jobs.training.optim import AdamW
from fam_engine.jobs.training.order import StepOrder, count_steps
from fam_engine.jobs.training.peers import Peers
from fam_engine.jobs.training.schedule import Schedule, warmup_steps
from fam_engine.jobs.training.steps import GradientMaker
from fam_engine.jobs.training.validation import untrained_loss, validation_loss
from fam_engine.model.adapter_files import save_adapter
from fam_engine.model.decoder import Decoder
from fam_engine.model.trainable import TrainableModel


@dataclass(frozen=True)
class LoopParts:
    """What the loop works with.

    Attributes:
        config: The settings.
        decoder: The base model.
        model: The model, its parameters fresh.
        train: What to train on.
        validation: What to judge by; None: nothing.
        memory: What is planned for it.
        checkpoints: Where the run is kept.
        crashes: Told of what is computed.
        progress: Told of every step.
        peers: The processes that run this loop together.
        check: Called between steps; raises `Interrupted` when a signal has come, to any of them.
    """

    config: TrainConfig
    decoder: Decoder
    model: TrainableModel
    train: Examples
    validation: Examples | None
    memory: MemoryPlan
    checkpoints: Checkpoints
    crashes: CrashWatch
    progress: Progress
    peers: Peers
    check: Callable[[], None]


class TrainingLoop:
    """Runs the steps of one job.

    Args:
        parts: What it works with.

    Raises:
        DeviceError: The optimizer cannot run here.
        CorruptStateError: There are checkpoints, and none reads back.
    """

    def __init__(self, parts: LoopParts) -> None:
        config = parts.config
        self._parts = parts
        self._order = StepOrder(parts.train.entries, batch_size=config.batch_size, seed=config.seed)
        self.num_steps = planned_steps(config, parts.train)
        self._schedule = Schedule(
            config.schedule,
            config.learning_rate,
            self.num_steps,
            warmup_steps(config.warmup, self.num_steps),
        )
        loss = loss_settings(config)
        self._gradients = GradientMaker(
            parts.model, parts.train, loss, seed=config.seed, peers=parts.peers
        )
        self._optimizer = AdamW(
            config.optimizer, parts.model.parameters, weight_decay=config.weight_decay
        )
        self._state = self._first_state()
        # Of the plan only the token budget is kept in checkpoints: the layers change no bit.
        self._plan = replace(parts.memory.step, max_tokens=self._state.max_tokens_per_batch)
        self._saved_step = self._state.step
        self._watch = DivergenceWatch(self._state.recent_nll, self._state.lowest_nll)
        self._untrained_nll: dict[int, float] = {}

    def run(self, out: Path) -> RunState:
        """Do the steps that are left.

        Args:
            out: Output folder, for the log.

        Returns:
            The counters at the end.

        Raises:
            DivergedError: The run is lost; the checkpoints before are kept.
            InputError: A record kills the process.
            StorageError: The disk would not take log or checkpoint; those before are kept.
            Interrupted: A signal came; a checkpoint is kept.
        """
        config, state = self._parts.config, self._state
        self._parts.crashes.examine(self._try_out, self._parts.progress.note)
        self._parts.progress.start("training", self._remaining_tokens(), "tokens")
        is_first = self._parts.peers.rank == 0
        with (
            TrainingLog(out, step=state.step, tensorboard=config.tensorboard)
            if is_first
            else SilentLog()
        ) as log:
            try:
                if state.step == 0 and self._parts.validation is not None:
                    report = self._validated(StepReport(0, 0.0), log)
                    log.write(report)
                    self._state = replace(state, untrained_loss=report.validation_loss)
                while not self._is_done():
                    self._parts.check()
                    self._step(log)
            except Interrupted:
                # What is no number is found out in the step after, which a run that goes on does again.
                if math.isfinite(self._optimizer.largest_value()):
                    self._save(log)
                raise
        return self._state

    # -- one step ------------------------------------------------------------------------------

    def _step(self, log: TrainingLog | SilentLog) -> None:
        watch = Stopwatch()
        entries = self._order.step_entries(self._state.step)
        report = self._learn(entries, log)
        number = report.step
        if self._is_validation_due(number):
            report = self._validated(report, log)
        report = replace(report, seconds=watch.seconds())
        self._state = self._after(report)
        is_best = report.validation_loss is not None and self._state.best_step == number
        is_kept = is_best or self._is_done() or number % self._parts.config.save_every == 0
        if is_kept:
            with _told(report, log):
                check_finite(number, "largest parameter", self._optimizer.largest_value())
        log.write(report)
        if is_kept:
            self._save(log)
        self._tell(report, entries)

    def _learn(self, entries: Entries, log: TrainingLog | SilentLog) -> StepReport:
        """Move the parameters once; give what is to be told."""
        state = self._state
        number = state.step + 1
        with self._parts.crashes.noted(replace(self._parts.train, entries=entries)):
            found, fitted = self._gradients.step(state.step, entries, self._plan)
        if fitted != self._plan:
            self._plan = fitted
            self._parts.progress.note(
                f"memory ran out: from here on {fitted.max_tokens} tokens a batch, and "
                f"{fitted.room / 2**30:.2f} GiB for what layers keep of one"
            )
        grad_norm = self._optimizer.clip_grad_norm(self._parts.config.max_grad_norm)
        report = StepReport(
            step=number,
            epoch=number / self._order.steps_per_epoch,
            loss=found.loss,
            nll=found.nll,
            kept=found.kept,
            lr=self._schedule.learning_rate(state.step),
            grad_norm=grad_norm,
            tokens=found.num_targets,
        )
        with _told(report, log):
            self._watch.check(
                number,
                loss=found.loss,
                nll=found.nll,
                grad_norm=grad_norm,
                untrained=lambda: self._untrained(number),
            )
        self._optimizer.step(self._schedule.learning_rate(state.step))
        return report

    def _untrained(self, step: int) -> float:
        """Give the untrained model's surprisal over a window of steps up to this one, the mean of their means."""
        # A run that is suspected at one step often is at the next.
        self._untrained_nll = {
            number: self._untrained_nll.get(number) or self._untrained_step(number)
            for number in range(step - WINDOW, step)
        }
        return math.fsum(self._untrained_nll.values()) / WINDOW

    def _untrained_step(self, step: int) -> float:
        parts = self._parts
        examples = replace(parts.train, entries=self._order.step_entries(step))
        with parts.crashes.noted(examples):
            return untrained_loss(parts.model, examples, self._plan.max_tokens, parts.peers)

    def _after(self, report: StepReport) -> RunState:
        """Give the counters after a step."""
        state = replace(
            self._state,
            step=report.step,
            max_tokens_per_batch=self._plan.max_tokens,
            tokens=self._state.tokens + report.tokens,
            seconds=self._state.seconds + report.seconds,
            recent_nll=tuple(self._watch.recent),
            lowest_nll=self._watch.lowest,
        )
        loss = report.validation_loss
        if loss is None:
            return state
        known = [one for one in (state.untrained_loss, state.best_loss) if one is not None]
        is_gain = all(loss < one for one in known)
        state = replace(state, num_worse=0 if is_gain else state.num_worse + 1)
        if state.best_loss is None or loss < state.best_loss:
            return replace(state, best_step=report.step, best_loss=loss)
        return state

    def _is_done(self) -> bool:
        return self._state.step >= self.num_steps or self._is_patience_over()

    def _is_patience_over(self) -> bool:
        """Whether validation has not improved for as long as `--patience` allows."""
        patience = self._parts.config.patience
        return patience is not None and self._state.num_worse >= patience

    # -- validation ----------------------------------------------------------------------------

    def _is_validation_due(self, step: int) -> bool:
        if self._parts.validation is None:
            return False
        every = self._parts.config.validate_every or self._order.steps_per_epoch
        return step % every == 0 or step == self.num_steps

    def _validated(self, report: StepReport, log: TrainingLog | SilentLog) -> StepReport:
        """Add the validation loss to a report."""
        with _told(report, log):
            return replace(report, validation_loss=self._validate(report.step))

    def _validate(self, step: int) -> float:
        assert self._parts.validation is not None
        with self._parts.crashes.noted(self._parts.validation):
            loss = validation_loss(
                self._parts.model, self._parts.validation, self._plan.max_tokens, self._parts.peers
            )
        check_finite(step, "validation loss", loss)
        self._parts.progress.note(f"step {step}: validation loss {loss:.4f} nats a token")
        return loss

    def _try_out(self, examples: Examples) -> None:
        """Compute examples as a step does and as validation does, which is another path, and forget it."""
        config = self._parts.config
        if self._parts.peers.size == 1:  # the others wait, and cannot be asked
            self._parts.check()
        gradients = GradientMaker(
            self._parts.model, examples, loss_settings(config), seed=config.seed
        )
        gradients.step(self._state.step, examples.entries, self._plan)
        self._optimizer.zero_grad()
        validation_loss(self._parts.model, examples, self._plan.max_tokens)

    # -- keeping ---------------------------------------------------------------------------------

    def _first_state(self) -> RunState:
        """Take over the newest checkpoint, or begin."""
        peers, checkpoints = self._parts.peers, self._parts.checkpoints
        found = checkpoints.latest(self._parts.progress.note) if peers.rank == 0 else None
        # Which one it is the first process says, so that all begin with the same.
        step = peers.share(found.state.step if found else None)
        if step is None:
            return RunState(step=0, max_tokens_per_batch=self._parts.memory.max_tokens)
        found = found or checkpoints.read(step)
        load_parameters(self._parts.model.parameters, found.parameters)
        self._optimizer.load_state(found.optimizer)
        self._parts.progress.note(f"going on after step {found.state.step} of {self.num_steps}")
        return found.state

    def _save(self, log: TrainingLog | SilentLog) -> None:
        if self._saved_step == self._state.step or self._parts.peers.rank > 0:
            return
        log.keep()
        self._parts.checkpoints.save(self._state, self._optimizer.state(), self._write_adapter)
        self._saved_step = self._state.step

    def _write_adapter(self, folder: Path) -> None:
        model = self._parts.model
        name = self._parts.config.model
        save_adapter(
            folder,
            model.spec,
            model.parameters,
            base_model_name_or_path=name,
            base_fingerprint=self._parts.decoder.weights.fingerprint,
        )

    # -- telling ---------------------------------------------------------------------------------

    def _remaining_tokens(self) -> int:
        return self._tokens_before(self.num_steps) - self._tokens_before(self._state.step)

    def _tokens_before(self, step: int) -> int:
        train, (epochs, begun) = self._parts.train, self._order.taken_before(step)
        return epochs * train.num_tokens(train.entries) + train.num_tokens(begun)

    def _tell(self, report: StepReport, entries: Entries) -> None:
        detail = f"step {report.step}/{self.num_steps}, loss {report.loss:.4f}, lr {report.lr:.2e}"
        self._parts.progress.advance(self._parts.train.num_tokens(entries), detail)


@contextlib.contextmanager
def _told(report: StepReport, log: TrainingLog | SilentLog) -> Iterator[None]:
    """Say in the log of a step that the run was lost in it."""
    try:
        yield
    except DivergedError as error:
        log.write(replace(report, diverged=error.message))
        raise


def planned_steps(config: TrainConfig, train: Examples) -> int:
    """Give the steps a run is to have."""
    return count_steps(
        len(train.entries), config.batch_size, epochs=config.epochs, steps=config.steps
    )


def loss_settings(config: TrainConfig) -> LossSettings:
    """Give the loss a run is to have."""
    return LossSettings(
        loss=config.loss,
        max_token_perplexity=config.max_token_perplexity,
        min_excess=config.min_excess,
    )


def load_parameters(
    parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]
) -> None:
    """Set parameters to saved values, bit by bit."""
    assert parameters.keys() == values.keys(), "a checkpoint of our own has our parameters"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
