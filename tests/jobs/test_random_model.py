"""Random models of a shape, which stand for the real one in dry runs."""

from __future__ import annotations

import torch

from fam_engine.jobs.random_model import random_decoder
from fam_engine.model.config import ModelConfig


def test_its_layers_are_the_first_of_the_shape() -> None:
    model = ModelConfig.from_dict(
        {
            "model_type": "smollm3",
            "vocab_size": 100,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "no_rope_layers": [0, 1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 16,
        }
    )
    decoder = random_decoder(model, 2, "nf4", torch.float32, torch.device("cpu"))
    assert len(decoder.weights.layers) == decoder.config.num_layers == 2
    assert decoder.config.uses_rope == (False, True)
    assert decoder.config.sliding_windows == (16, None)
