"""A model's shape with one or two layers of random weights, to time what a dry run foresees.

In: a shape. Out: a decoder that costs per layer what the model would, made in seconds whatever the model weighs.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fam_engine.config import Precision
from fam_engine.model.checkpoint import SOURCES, linear_shapes
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.nf4 import BLOCK_SIZE, NESTED_BLOCK_SIZE
from fam_engine.model.ops import NF4Weight
from fam_engine.model.weights import LayerWeights, Linear, Weights


def with_all_layers(model: ModelConfig, one: float, two: float) -> float:
    """Give the time of all layers from the times with one and with two."""
    return one + (model.num_layers - 1) * max(two - one, 0.0)


def random_decoder(
    model: ModelConfig,
    num_layers: int,
    precision: Precision,
    dtype: torch.dtype,
    device: torch.device,
) -> Decoder:
    """Make a decoder with the first layers of a shape.

    Args:
        model: The shape.
        num_layers: How many of its layers.
        precision: How its matrices are held.
        dtype: Compute dtype.
        device: Where.
    """
    config = replace(
        model,
        num_layers=num_layers,
        uses_rope=model.uses_rope[:num_layers],
        sliding_windows=model.sliding_windows[:num_layers],
    )
    shapes = linear_shapes(config)
    stored = torch.float32 if precision == "fp32" else torch.bfloat16

    def matrix(num_rows: int, num_columns: int) -> torch.Tensor:
        return torch.randn(num_rows, num_columns, device=device, dtype=stored) * 0.02

    def linear(names: tuple[str, ...]) -> Linear:
        if precision == "nf4":
            return Linear(weight=tuple(_random_nf4(*shapes[name], device) for name in names))
        return Linear(weight=torch.cat([matrix(*shapes[name]) for name in names]))

    ones = torch.ones(config.hidden_size, dtype=dtype, device=device)
    head_norm = torch.ones(config.head_dim, dtype=dtype, device=device) if config.qk_norm else None
    layers = []
    for _ in range(num_layers):
        merged = {name: linear(sources) for name, sources in SOURCES.items()}
        layers.append(
            LayerWeights(
                input_norm_D=ones, post_norm_D=ones, q_norm=head_norm, k_norm=head_norm, **merged
            )
        )
    embed_VD = matrix(config.vocab_size, config.hidden_size)
    head_VD = embed_VD if config.tie_word_embeddings else torch.clone(embed_VD)
    weights = Weights(embed_VD=embed_VD, head_VD=head_VD, final_norm_D=ones, layers=tuple(layers))
    return Decoder(config, weights, precision=precision, compute_dtype=dtype, device=device)


def _random_nf4(num_rows: int, num_columns: int, device: torch.device) -> NF4Weight:
    """Give a matrix of any codes and one scale: to quantize random values would take longer than the trial."""
    num_blocks = -(-num_rows * num_columns // BLOCK_SIZE)
    num_scales = -(-num_blocks // NESTED_BLOCK_SIZE)
    num_bytes = -(-num_rows * num_columns // 2)
    return NF4Weight(
        packed=torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device),
        absmax=torch.zeros(num_blocks, dtype=torch.uint8, device=device),
        absmax2=torch.zeros(num_scales, device=device),
        offset=torch.tensor(0.04, device=device),
        code2=torch.zeros(256, device=device),
        shape=(num_rows, num_columns),
    )
