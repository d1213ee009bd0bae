"""How long training takes, from a trial: one and two layers of the model's shape, random weights, real micro-batches.

In: a model's shape, the settings, some examples. Out: seconds a token. The model itself need not be loaded for it. A
figure from the speed of matrix products alone was five times too low on a small model, where attention, norms, LoRA
and the head cost more than they; this one comes from the very code that will run.
"""

from __future__ import annotations

import torch

from fam_engine.config import TrainConfig
from fam_engine.data.packing import Entries, PackedBatch
from fam_engine.jobs.random_model import random_decoder
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.jobs.training.budget import StepPlan
from fam_engine.jobs.training.examples import Examples
from fam_engine.jobs.training.losses import LossSettings
from fam_engine.jobs.training.steps import GradientMaker
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import LoraSpec
from fam_engine.model.trainable import Policy, TrainableModel

_ROUNDS = 2


def seconds_a_token(
    config: TrainConfig,
    model: ModelConfig,
    examples: Examples,
    entries: Entries,
    *,
    num_again: float,
    spec: LoraSpec,
    loss: LossSettings,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Time the gradients of one micro-batch.

    Args:
        config: The settings.
        model: The model's shape.
        examples: What is trained on.
        entries: The micro-batch.
        num_again: How many of the model's layers compute theirs again, on average.
        spec: The adapter's form.
        loss: Which loss.
        dtype: Compute dtype.
        device: Where.

    Returns:
        Seconds a token (prompts counted for every entry) through all layers and the head.
    """
    batch = PackedBatch.of(examples.spool, entries)

    def seconds(num_layers: int, num_whole: int) -> float:
        decoder = random_decoder(model, num_layers, config.precision, dtype, device)
        trainable = TrainableModel(decoder, spec, seed=0)
        maker = GradientMaker(trainable, examples, loss, seed=0)
        room = trainable.activation_bytes(batch, Policy(num_whole))
        plan = StepPlan(len(batch.input_ids), room, host_room=0)
        return min(_time(maker, entries, plan, device) for _ in range(_ROUNDS))

    one = seconds(1, 1)
    total = one + (model.num_layers - 1 - num_again) * max(seconds(2, 2) - one, 0.0)
    if num_again:
        total += num_again * max(seconds(2, 1) - one, 0.0)
    return total / examples.num_tokens(entries)


def _time(maker: GradientMaker, entries: Entries, plan: StepPlan, device: torch.device) -> float:
    watch = Stopwatch()
    maker.step(0, entries, plan)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return watch.seconds()
