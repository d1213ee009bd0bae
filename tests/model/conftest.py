"""Small random checkpoints of every architecture, in the folder form users bring.

In: an architecture's name and fields of its config. Out: a folder with config.json and
model.safetensors, written by transformers itself, so that what our reader meets is what other
programs write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch
import transformers

if TYPE_CHECKING:
    from pathlib import Path

# Hidden 64 and MLP 96: NF4 blocks of down_proj straddle rows (96 % 64 != 0). Heads of 16, two
# queries to a key head.
TINY: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
# Of SmolLM3's layers the second has no rope; of two or four it is the last too, where few rows have queries.
SMOLLM3: dict[str, Any] = {"no_rope_layer_interval": 2}


class TinyCheckpoint(Protocol):
    """Makes a checkpoint: architecture, then overrides of config fields."""

    def __call__(
        self,
        model_type: str,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        max_shard_size: str = "1GB",
        **config_overrides: object,
    ) -> Path: ...


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small products run slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> TinyCheckpoint:
    """Give a maker of random tiny checkpoints; each call writes a new folder."""
    count = 0

    def make(
        model_type: str,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        max_shard_size: str = "1GB",
        **config_overrides: object,
    ) -> Path:
        nonlocal count
        folder = tmp_path / f"{model_type}-{count}"
        count += 1
        torch.manual_seed(seed)
        values = TINY | (SMOLLM3 if model_type == "smollm3" else {}) | config_overrides
        config = transformers.AutoConfig.for_model(model_type, **values)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        randomise_vectors(model)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return make


def randomise_vectors(model: torch.nn.Module) -> None:
    """Move norms off one and biases off zero, where a mistake in their use would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
