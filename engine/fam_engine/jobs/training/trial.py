"""How long training takes, from a trial: one and two layers of the model's shape, random weights, real micro-batches.

In: a model's shape, the settings, some examples. Out: seconds a token. The model itself need not be loaded for it. A
figure from the speed of matrix products alone was five times too low on a small model, where attention, norms, LoRA
and the head cost more than they; this one comes from the very code that will run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fam_engine.config import Precision, TrainConfig
from fam_engine.jobs.scoring.stopwatch import Stopwatch
from fam_engine.jobs.training.examples import Examples
from fam_engine.jobs.training.losses import LossSettings
from fam_engine.jobs.training.order import Entries
from fam_engine.jobs.training.steps import GradientMaker
from fam_engine.model.checkpoint import linear_shapes
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.lora import SOURCES, LoraSpec
from fam_engine.model.nf4 import quantize
from fam_engine.model.trainable import TrainableModel
from fam_engine.model.weights import LayerWeights, Linear, Weights

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
        decoder = _random_decoder(model, num_layers, config.precision, dtype, device)
        trainable = TrainableModel(decoder, spec, seed=0)
        maker = GradientMaker(trainable, examples, loss, seed=0)
        times.append(min(_time(maker, entries, device) for _ in range(_ROUNDS)))
    one, two = times
    whole = one + (model.num_layers - 1) * max(two - one, 0.0)
    return whole / examples.num_tokens(entries)


def _time(maker: GradientMaker, entries: Entries, device: torch.device) -> float:
    watch = Stopwatch()
    # All entries are to be one micro-batch.
    maker.step(0, entries, 1 << 40)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return watch.seconds()


def _random_decoder(
    model: ModelConfig,
    num_layers: int,
    precision: Precision,
    dtype: torch.dtype,
    device: torch.device,
) -> Decoder:
    """Make a decoder of the model's shape with so few layers."""
    windows = model.sliding_windows[:num_layers]
    config = replace(model, num_layers=num_layers, sliding_windows=windows)
    stored = torch.float32 if precision == "fp32" else torch.bfloat16

    def matrix(num_rows: int, num_columns: int) -> torch.Tensor:
        return torch.randn(num_rows, num_columns, device=device, dtype=stored) * 0.02

    shapes = linear_shapes(config)
    ones = torch.ones(config.hidden_size, dtype=dtype, device=device)
    head_norm = torch.ones(config.head_dim, dtype=dtype, device=device) if config.qk_norm else None
    layers = []
    for _ in range(num_layers):
        sources = {name: matrix(*shape) for name, shape in shapes.items()}
        merged = {name: _merged(sources, name, precision) for name in SOURCES}
        layers.append(
            LayerWeights(
                input_norm_D=ones, post_norm_D=ones, q_norm=head_norm, k_norm=head_norm, **merged
            )
        )
    embed_VD = matrix(config.vocab_size, config.hidden_size)
    head_VD = embed_VD if config.tie_word_embeddings else torch.clone(embed_VD)
    weights = Weights(embed_VD=embed_VD, head_VD=head_VD, final_norm_D=ones, layers=tuple(layers))
    return Decoder(config, weights, precision=precision, compute_dtype=dtype, device=device)


def _merged(sources: Mapping[str, torch.Tensor], name: str, precision: Precision) -> Linear:
    parts = [sources[source] for source in SOURCES[name]]
    if precision == "nf4":
        return Linear(weight=tuple(quantize(part) for part in parts))
    return Linear(weight=torch.cat(parts))
