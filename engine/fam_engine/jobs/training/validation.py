"""How surprised the model is by answers, as it is or untrained.

In: a model, examples. Out: mean surprisal of their tokens, nats; `exp` of it is a token-weighted
perplexity. No dropout, no gradient, always the plain loss: it must mean the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fam_engine.data.packing import Entries, PackedBatch
from fam_engine.errors import DeviceError
from fam_engine.jobs.training.examples import Examples
from fam_engine.jobs.training.peers import ALONE, Peers
from fam_engine.jobs.training.steps import micro_batches
from fam_engine.model.out_of_memory import in_halves
from fam_engine.model.trainable import TrainableModel


def validation_loss(
    model: TrainableModel, examples: Examples, max_tokens: int, peers: Peers = ALONE
) -> float:
    """Measure the model.

    Args:
        model: The model and its parameters.
        examples: What to measure it on.
        max_tokens: Token budget of a batch.
        peers: The processes that measure it together.

    Returns:
        Mean negative log-likelihood of the answers' tokens, nats.

    Raises:
        DeviceError: A record does not fit in memory even alone.
    """
    return _mean(model.token_nll, examples, max_tokens, peers)


def untrained_loss(
    model: TrainableModel, examples: Examples, max_tokens: int, peers: Peers = ALONE
) -> float:
    """Measure the same of the model without its adapter."""
    return _mean(model.base_token_nll, examples, max_tokens, peers)


def _mean(
    token_nll: Callable[[PackedBatch], torch.Tensor],
    examples: Examples,
    max_tokens: int,
    peers: Peers,
) -> float:
    def summed(entries: Entries) -> float:
        return float(token_nll(PackedBatch.of(examples.spool, entries)).sum())

    total = 0.0
    for entries in peers.own(micro_batches(examples, examples.entries, max_tokens)):
        try:
            total += sum(in_halves(summed, entries))
        except torch.OutOfMemoryError:
            raise DeviceError(
                "a record does not fit in memory while the model is measured",
                code="E_OOM_RECORD",
                hint="lower --max-length or --rank",
            ) from None
    total = sum(row[0] for row in peers.gather([total]))
    return total / examples.num_targets(examples.entries)
