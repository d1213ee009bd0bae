"""How much memory training takes, and how many tokens of a micro-batch fit what is free.

In: the model's shape, the adapter's form. Out: bytes, and the default of `--max-tokens-per-batch`. Estimates, printed
as such; a micro-batch that does not fit all the same is halved by the step that runs it.
"""

from __future__ import annotations

import torch

from fam_engine.jobs.training.optim import OptimizerName
from fam_engine.model.checkpoint import linear_shapes
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import LoraSpec
from fam_engine.model.memory import free_bytes

# Beyond these a larger micro-batch no longer makes the matrix products faster.
_MOST_TOKENS = {"cpu": 2048, "cuda": 16384}
_SHARE_OF_FREE = 0.4
# Value and gradient in fp32, then two moments.
_PARAMETER_BYTES = {"adamw": 8 + 8, "adamw8bit": 8 + 2}


def num_trainable(config: ModelConfig, spec: LoraSpec) -> int:
    """Give the number of trained parameters."""
    shapes = linear_shapes(config)
    sizes = (sum(shapes[module.split(".", 3)[3]]) for module in spec.modules(config))
    return spec.rank * sum(sizes)


def adapter_bytes(config: ModelConfig, spec: LoraSpec, optimizer: OptimizerName) -> int:
    """Give the bytes of the parameters, their gradients and the optimizer's state."""
    return num_trainable(config, spec) * _PARAMETER_BYTES[optimizer]


def token_bytes(config: ModelConfig, compute_dtype: torch.dtype) -> int:
    """Give the bytes a token of a micro-batch takes at the peak of its backward pass."""
    c = config
    qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    # Kept: every layer's input. Computed again, of one layer: fp32 copies for norms, LoRA, SwiGLU.
    kept = c.num_layers * c.hidden_size * compute_dtype.itemsize
    layer = 4 * (12 * c.hidden_size + 4 * qkv + 10 * c.intermediate_size)
    head = 4 * (2 * c.hidden_size + 4 * (c.vocab_size // 1024 + 1))
    return kept + layer + head


def default_tokens(config: ModelConfig, device: torch.device, compute_dtype: torch.dtype) -> int:
    """Give the micro-batch that fits comfortably in what is free now, a multiple of 64 tokens."""
    fitting = int(free_bytes(device) * _SHARE_OF_FREE) // token_bytes(config, compute_dtype)
    return max(64, min(fitting, _MOST_TOKENS[device.type]) // 64 * 64)
