"""How long training takes, from a trial: one and two layers of the model's shape, random weights, real micro-batches.

In: a model's shape, the settings, some examples. Out: seconds a token. The model itself need not be loaded for it. A
figure from the speed of matrix products alone was five times too low on a small model, where attention, norms, LoRA
and the head cost more than they; this one comes from the very code that will run.
"""

from __future__ import annotations

import torch

from fam_engine.config import TrainConfig
from fam_engine.jobs.random_model import random_decoder, with_all_layers
from fam_engine.jobs.scoring.stopwatch import Stopwatch
from fam_engine.jobs.training.examples import Examples
from fam_engine.jobs.training.losses import LossSettings
from fam_engine.jobs.training.order import Entries
from fam_engine.jobs.training.steps import GradientMaker
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import LoraSpec
from fam_engine.model.trainable import TrainableModel

_ROUNDS = 2


def seconds_a_token(
    config: TrainConfig,
    model: ModelConfig,
    examples: Examples,
    entries: Entries,
    *,
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
        spec: The adapter's form.
        loss: Which loss.
        dtype: Compute dtype.
        device: Where.

    Returns:
        Seconds a token (prompts counted for every entry) through all layers and the head.
    """
    times = []
    for num_layers in (1, 2):
        decoder = random_decoder(model, num_layers, config.precision, dtype, device)
        trainable = TrainableModel(decoder, spec, seed=0)
        maker = GradientMaker(trainable, examples, loss, seed=0)
        times.append(min(_time(maker, entries, device) for _ in range(_ROUNDS)))
    one, two = times
    return with_all_layers(model, one, two) / examples.num_tokens(entries)


def _time(maker: GradientMaker, entries: Entries, device: torch.device) -> float:
    watch = Stopwatch()
    # All entries are to be one micro-batch.
    maker.step(0, entries, 1 << 40)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return watch.seconds()
