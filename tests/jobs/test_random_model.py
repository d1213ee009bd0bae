"""Random models of a shape, which stand for the real one in dry runs."""

from __future__ import annotations

import torch

from fam_engine.jobs.random_model import random_decoder
from fam_engine.model import ops
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.nf4 import quantize


def some_layers(num_layers: int) -> Decoder:
    model = ModelConfig.from_dict(
        {
            "model_type": "smollm3",
            "vocab_size": 100,
            "hidden_size": 64,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "no_rope_layers": [0, 1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 16,
        }
    )
    return random_decoder(model, num_layers, "nf4", torch.float32, torch.device("cpu"))


def test_its_layers_are_the_first_of_the_shape() -> None:
    decoder = some_layers(2)
    assert len(decoder.weights.layers) == decoder.config.num_layers == 2
    assert decoder.config.uses_rope == (False, True)
    assert decoder.config.sliding_windows == (16, None)


def test_its_matrices_have_the_form_of_quantized_ones_and_values_like_theirs() -> None:
    for part in some_layers(1).weights.layers[0].gate_up.weight:
        assert isinstance(part, ops.NF4Weight)
        like = quantize(torch.randn(part.shape))
        for name in ("packed", "absmax", "absmax2", "offset", "code2"):
            found, wanted = getattr(part, name), getattr(like, name)
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), name
        assert 0.01 < ops.dequantize([part], out=torch.empty(part.shape)).std() < 0.03
