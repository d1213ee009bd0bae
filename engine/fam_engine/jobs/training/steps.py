"""One step's gradients: its entries in micro-batches, exactly as if they were one batch.

In: entries, a plan. Out: gradients on the parameters and what the step's loss was. Every micro-batch's sum of
weighted losses is divided by the supervised tokens of the whole step, so any split gives the same loss and gradients
(but for rounding). Dividing by those of the micro-batch, as many trainers did, gives short answers more weight. Several
processes compute a micro-batch each at a time, and add their sums and gradients at the end.

Where memory runs out the step is done again: first with fewer layers that keep their activations, then with the
layers' inputs in the host's memory, which changes no bit of the result; then with smaller micro-batches, which rounds
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fam_engine._rust_tokenize import pack_batch, plan_batches
from fam_engine.data.packing import ROW_GRID, PackedBatch, on_grid
from fam_engine.errors import DeviceError
from fam_engine.jobs.training.budget import StepPlan
from fam_engine.jobs.training.examples import Examples
from fam_engine.jobs.training.losses import NEEDS_BASE, LossSettings, token_weights
from fam_engine.jobs.training.order import Entries, dropout_seed
from fam_engine.jobs.training.peers import ALONE, Peers
from fam_engine.model.trainable import BatchShape, Policy, TrainableModel


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
            if found is not None:
                return found, plan
            is_least = plan.max_tokens <= ROW_GRID or all(len(batch) == 1 for batch in batches)
            policy = self._lowered(plan.policy)
            if policy is not None:
                plan = replace(plan, policy=policy)
            elif not is_least:
                plan = replace(plan, max_tokens=max(ROW_GRID, plan.max_tokens // 2))
            else:
                raise DeviceError(
                    "the smallest micro-batch does not fit in memory",
                    code="E_OOM_RECORD",
                    where=f"step {step + 1}",
                    hint="lower --max-length or --rank",
                )

    def _largest(self, max_tokens: int) -> BatchShape:
        """Give the largest micro-batch there can be."""
        longest = on_grid(self._examples.longest)
        return BatchShape(max(max_tokens, longest), longest)

    def _lowered(self, policy: Policy) -> Policy | None:
        """Give the next policy that takes less memory; None if there is none."""
        if policy.num_whole:
            return replace(policy, num_whole=policy.num_whole // 2)
        if self._model.may_offload and not policy.offload:
            return replace(policy, offload=True)
        return None

    def _try(
        self, step: int, entries: Entries, batches: list[Entries], plan: StepPlan
    ) -> StepLoss | None:
        """Compute a step; None if some process ran out of memory, and then no gradient is left."""
        num_targets = self._examples.num_targets(entries)
        sums, parameters = torch.zeros(3, dtype=torch.float64), self._model.parameters.values()
        is_short = False
        try:
            for number, batch in self._peers.own(list(enumerate(batches))):
                sums += self._micro_batch(step, number, batch, num_targets, plan)
        except torch.OutOfMemoryError:
            is_short = True
        told = self._peers.gather([*sums.tolist(), is_short])
        if any(row[-1] for row in told):
            for parameter in parameters:
                parameter.grad = None
            torch.cuda.empty_cache()
            return None
        self._peers.sum_([_gradient(parameter) for parameter in parameters])
        loss, nll, kept = (
            sum(column) / num_targets for column in list(zip(*told, strict=True))[:3]
        )
        return StepLoss(loss, nll, kept, num_targets)

    def _micro_batch(
        self, step: int, number: int, entries: Entries, num_targets: int, plan: StepPlan
    ) -> torch.Tensor:
        """Add a micro-batch's gradients; give its sums of weighted loss, surprisal and weight."""
        batch = PackedBatch(**pack_batch(self._examples.spool, entries))
        # Before the step, so that nothing is kept for its backward pass meanwhile.
        base_R = self._model.base_token_nll(batch) if self._loss.loss in NEEDS_BASE else None
        nll_R = self._model.forward_backward(
            batch,
            lambda nll_R: token_weights(nll_R, base_R, self._loss) / num_targets,
            dropout_seed=dropout_seed(self._seed, step, number),
            policy=self._model.policy_within(batch, self._largest(plan.max_tokens), plan.policy),
        )
        weights_R = token_weights(nll_R, base_R, self._loss)
        sums = torch.stack([(weights_R * nll_R).sum(), nll_R.sum(), weights_R.sum()])
        return sums.to("cpu", torch.float64)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    """Give a parameter's gradient, of zeros where no micro-batch has come by."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def micro_batches(examples: Examples, entries: Entries, max_tokens: int) -> list[Entries]:
    """Cut entries into batches of at most so many tokens; the same set gives the same batches."""
    plan = plan_batches(examples.spool, entries, max_tokens=max_tokens)
    return [plan.batch_entries(number) for number in range(plan.num_batches)]


def shared_out(
    examples: Examples, entries: Entries, max_tokens: int, num_processes: int
) -> list[Entries]:
    """Cut entries into micro-batches that keep processes equally busy, each taking one in turn.

    The processes need as many rounds as micro-batches of `max_tokens` fill. In so many rounds more micro-batches can
    be had, so these are made as small as they can be: the largest is what everybody waits for.
    """
    batches = micro_batches(examples, entries, max_tokens)
    if num_processes == 1:
        return batches
    most = -(-len(batches) // num_processes) * num_processes
    low, high = 1, max_tokens // ROW_GRID
    while low < high:
        middle = (low + high) // 2
        smaller = micro_batches(examples, entries, middle * ROW_GRID)
        if len(smaller) <= most:
            batches, high = smaller, middle
        else:
            low = middle + 1
    return batches
