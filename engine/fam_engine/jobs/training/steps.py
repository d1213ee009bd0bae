"""One step's gradients: its entries in micro-batches, exactly as if they were one batch.

In: entries, a plan. Out: gradients on the parameters and what the step's loss was. Every micro-batch's sum of
weighted losses is divided by the supervised tokens of the whole step, so any split gives the same loss and gradients
(but for rounding). Dividing by those of the micro-batch, as many trainers did, gives short answers more weight. Several
processes compute a micro-batch each at a time, and add their sums and gradients at the end.

Of each micro-batch layers keep what fits. Where memory runs out all the same the step is done again: first with less
room for what they keep, which changes no bit of the result; once the micro-batch that failed keeps the least there is,
with smaller ones, which rounds otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from fam_engine._rust_tokenize import plan_batches
from fam_engine.data.packing import ROW_GRID, Entries, PackedBatch, batches_of
from fam_engine.errors import DeviceError
from fam_engine.jobs.training.budget import StepPlan
from fam_engine.jobs.training.examples import Examples
from fam_engine.jobs.training.losses import NEEDS_BASE, LossSettings, token_weights
from fam_engine.jobs.training.order import dropout_seed
from fam_engine.jobs.training.peers import ALONE, Peers
from fam_engine.model.out_of_memory import memory_errors
from fam_engine.model.trainable import HostMemoryError, Policy, TrainableModel

# So many times the tokens may be computed for micro-batches of one size.
_MORE_TOKENS = 1.01
# Of what a micro-batch was to take and could not, the room there is then.
_LESS = 0.75


@dataclass(frozen=True)
class StepLoss:
    """What a step found.

    Attributes:
        loss: Weighted, nats a supervised token.
        nll: Mean surprisal of the supervised tokens, nats.
        kept: Mean weight of the tokens.
        num_targets: Supervised tokens.
    """

    loss: float
    nll: float
    kept: float
    num_targets: int


@dataclass(frozen=True)
class _Shortage:
    """What a step lacked.

    Attributes:
        is_of_host: Whether it was the host's memory.
        num_bytes: What the activations of a micro-batch were to take; 0 if no layer can keep less.
    """

    is_of_host: bool
    num_bytes: int


class GradientMaker:
    """Computes gradients of steps.

    Args:
        model: The model and its parameters.
        examples: What is trained on.
        loss: Which loss.
        seed: Of the run.
        peers: The processes that compute them together.
    """

    def __init__(
        self,
        model: TrainableModel,
        examples: Examples,
        loss: LossSettings,
        *,
        seed: int,
        peers: Peers = ALONE,
    ) -> None:
        self._model = model
        self._examples = examples
        self._loss = loss
        self._seed = seed
        self._peers = peers
        # On the device: what a micro-batch found is not waited for while the next can be asked for.
        self._sums = torch.zeros(3, dtype=torch.float64, device=model.device)

    def step(self, step: int, entries: Entries, plan: StepPlan) -> tuple[StepLoss, StepPlan]:
        """Add the gradients of a step to the parameters.

        Args:
            step: Its number, from 0.
            entries: Its entries.
            plan: How to compute it.

        Returns:
            What was found, and the plan that fitted in memory.

        Raises:
            DeviceError: One entry alone does not fit, or several tiny ones at the least budget.
        """
        while True:
            batches = shared_out(self._examples, entries, plan.max_tokens, self._peers.size)
            found = self._try(step, entries, batches, plan)
            if isinstance(found, StepLoss):
                return found, plan
            is_least = plan.max_tokens <= ROW_GRID or all(len(batch) == 1 for batch in batches)
            if found.is_of_host:
                plan = replace(plan, host_room=0)
            elif found.num_bytes:
                plan = replace(plan, room=int(_LESS * found.num_bytes))
            elif not is_least:
                plan = replace(plan, max_tokens=max(ROW_GRID, plan.max_tokens // 2))
            else:
                raise DeviceError(
                    "the smallest micro-batch does not fit in memory",
                    code="E_OOM_RECORD",
                    where=f"step {step + 1}",
                    hint="lower --max-length or --rank",
                )

    def _try(
        self, step: int, entries: Entries, batches: list[Entries], plan: StepPlan
    ) -> StepLoss | _Shortage:
        """Compute a step; a shortage if some process ran out of memory, and then all gradients are zero."""
        num_targets = self._examples.num_targets(entries)
        sums, short = self._sums.zero_(), [0, 0, 0]
        try:
            for number, batch in self._peers.own(list(enumerate(batches))):
                packed = PackedBatch.of(self._examples.spool, batch)
                policy = self._model.choose_policy(packed, free=plan.room, host_free=plan.host_room)
                with memory_errors():
                    sums += self._micro_batch(step, number, packed, num_targets, policy)
        except torch.OutOfMemoryError as error:
            is_of_host = isinstance(error, HostMemoryError)
            short = [True, is_of_host, self._reducible(packed, policy, plan.host_room)]
        told = list(zip(*self._peers.gather([*sums.tolist(), *short]), strict=True))
        parameters = self._model.parameters.values()
        if any(told[3]):
            for parameter in parameters:
                if parameter.grad is not None:
                    # Where it lies, which is in the optimizer's buffer: another would be memory nobody planned.
                    parameter.grad.zero_()
            torch.cuda.empty_cache()
            return _Shortage(any(told[4]), max(map(int, told[5])))
        self._peers.sum_([_gradient(parameter) for parameter in parameters])
        loss, nll, kept = (sum(column) / num_targets for column in told[:3])
        return StepLoss(loss, nll, kept, num_targets)

    def _reducible(self, batch: PackedBatch, policy: Policy, host_room: int) -> int:
        """Give the bytes of a micro-batch's activations; 0 if its layers keep the least there is."""
        least = self._model.choose_policy(batch, free=0, host_free=host_room)
        return 0 if policy == least else self._model.activation_bytes(batch, policy)

    def _micro_batch(
        self, step: int, number: int, batch: PackedBatch, num_targets: int, policy: Policy
    ) -> torch.Tensor:
        """Add a micro-batch's gradients; give its sums of weighted loss, surprisal and weight."""
        # Before the step, so that nothing is kept for its backward pass meanwhile.
        base_R = self._model.base_token_nll(batch) if self._loss.loss in NEEDS_BASE else None
        nll_R = self._model.forward_backward(
            batch,
            lambda nll_R: token_weights(nll_R, base_R, self._loss) / num_targets,
            dropout_seed=dropout_seed(self._seed, step, number),
            policy=policy,
        )
        weights_R = token_weights(nll_R, base_R, self._loss)
        return torch.stack([(weights_R * nll_R).sum(), nll_R.sum(), weights_R.sum()]).double()


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    """Give a parameter's gradient, of zeros where no micro-batch has come by."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def micro_batches(examples: Examples, entries: Entries, max_tokens: int) -> list[Entries]:
    """Cut entries into batches of at most so many tokens; the same set gives the same batches."""
    return batches_of(plan_batches(examples.spool, entries, max_tokens=max_tokens))


def shared_out(
    examples: Examples, entries: Entries, max_tokens: int, num_processes: int
) -> list[Entries]:
    """Cut entries into micro-batches of nearly one size, each process taking one in turn.

    The processes need as many rounds as micro-batches of `max_tokens` fill. In so many rounds more micro-batches can
    be had, so these are made as small as they can be: the largest is what everybody waits for, and what memory is
    taken for; sizes that differ less leave fewer gaps in it. A process alone waits for all of them, so there a prompt
    that several answers share is not computed anew for it.
    """
    plan = plan_batches(examples.spool, entries, max_tokens=max_tokens)
    most = -(-plan.num_batches // num_processes) * num_processes
    most_tokens = _MORE_TOKENS * plan.total_tokens if num_processes == 1 else math.inf
    # One micro-batch has all entries, whatever its budget.
    low, high = 1, max_tokens // ROW_GRID if most > 1 else 1
    while low < high:
        middle = (low + high) // 2
        smaller = plan_batches(examples.spool, entries, max_tokens=middle * ROW_GRID)
        if smaller.num_batches <= most and smaller.total_tokens <= most_tokens:
            plan, high = smaller, middle
        else:
            low = middle + 1
    return batches_of(plan)
