"""How many layers keep their activations: plans of real shapes, and what a step really holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fam_engine.kernels import chunking, linear_cross_entropy_triton, lora_backward, mm_fp32, swiglu
from fam_engine.model.config import ModelConfig
from fam_engine.model.loading import ComputeDtype, load_model
from fam_engine.model.lora import LoraSpec
from fam_engine.model.training import recomputation
from fam_engine.model.training.recomputation import TokenBytes, activation_bytes, whole_layers
from tests.model.conftest import TinyCheckpoint, one_thread, tiny_checkpoint
from tests.model.packing_reference import pack_reference
from tests.model.plain import random_entries
from tests.model.training.reference import ALL, spec_of, trainable

__all__ = ["one_thread", "tiny_checkpoint"]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "num_key_value_heads": 8,
}
SHAPES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "head_dim": 64},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
    | {"num_attention_heads": 24, "head_dim": 128},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "head_dim": 128},
}
# Bytes of a card, less what the driver, NF4 weights with scratch memory, rank 16 with its gradients and
# AdamW take.
TAKEN = {"1B": 2.72e9, "3B": 4.18e9, "8B": 8.06e9}


def bf16_bytes(shape: str) -> tuple[TokenBytes, int]:
    config = ModelConfig.from_dict(LLAMA | SHAPES[shape])
    spec = LoraSpec(16, 16, 0.0, ALL, False)
    each = recomputation.token_bytes(
        config, spec, dtype=torch.bfloat16, device=torch.device("cuda")
    )
    return each, config.num_layers


@pytest.mark.parametrize(
    ("shape", "gigabytes", "expected"),
    [
        # Tokens 2048, 8192, 16384.
        ("1B", 8, (16, 9, 3)),
        ("1B", 24, (16, 16, 16)),
        ("3B", 8, (23, 2, 0)),
        ("3B", 12, (28, 11, 3)),
        ("3B", 24, (28, 28, 17)),
        ("8B", 8, (0, 0, 0)),
        ("8B", 12, (14, 0, 0)),
        ("8B", 16, (32, 6, 1)),
        ("8B", 24, (32, 17, 7)),
    ],
)
def test_plans_of_real_shapes(shape: str, gigabytes: int, expected: tuple[int, int, int]) -> None:
    each, num_layers = bf16_bytes(shape)
    free = int(gigabytes * 1e9 - TAKEN[shape])
    plans = tuple(
        whole_layers(each, num_layers=num_layers, num_tokens=num_tokens, free=free)
        for num_tokens in (2048, 8192, 16384)
    )
    assert plans == expected


@pytest.mark.parametrize("vocab_size", [32_000, 128_256, 151_936, 262_144])
def test_the_tile_of_logits_is_the_kernel_s(vocab_size: int) -> None:
    config = ModelConfig.from_dict(LLAMA | SHAPES["1B"] | {"vocab_size": vocab_size})
    each = recomputation.token_bytes(
        config, LoraSpec(16, 16, 0.0, ALL, False), dtype=torch.bfloat16, device=torch.device("cuda")
    )
    for num_tokens in (64, 1024, 1500, 100_000):
        made = linear_cross_entropy_triton._tile(num_tokens, vocab_size, torch.device("meta"))
        planned = min(num_tokens * each.logits, each.tile)
        assert made.numel() * 4 <= planned <= 1.06 * made.numel() * 4


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plan_fits_and_one_layer_more_does_not(shape: str) -> None:
    each, num_layers = bf16_bytes(shape)
    for num_tokens in (64, 1024, 4096, 10_000):
        before = 0
        for free in range(0, 40 * 10**9, 7 * 10**8):
            k = whole_layers(each, num_layers=num_layers, num_tokens=num_tokens, free=free)
            assert before <= k <= num_layers
            before = k
            sizes = [
                activation_bytes(
                    each, num_layers=num_layers, num_tokens=num_tokens, num_whole=number
                )
                for number in (k, k + 1)
            ]
            assert sizes[0] <= free or k == 0
            assert free < sizes[1] or k == num_layers


class Peak(TorchDispatchMode):
    """Notes the most bytes that storages made meanwhile hold at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(  # type: ignore[override]
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        given = {
            StorageWeakRef(x.untyped_storage())
            for x in (*args, *(kwargs or {}).values())
            if isinstance(x, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference not in given:
                    self._alive[reference] = tensor.untyped_storage().nbytes()
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self.bytes = max(self.bytes, sum(self._alive.values()))
        return result


@pytest.mark.parametrize(("model_type", "compute_dtype"), [("llama", "fp32"), ("qwen3", "bf16")])
def test_what_a_step_holds(
    tiny_checkpoint: TinyCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    compute_dtype: ComputeDtype,
) -> None:
    """Chunks are made small, so that they do not hide what grows with tokens."""
    monkeypatch.setattr(mm_fp32, "SUMMED", 64)
    monkeypatch.setattr(lora_backward, "_ROWS", 64)
    monkeypatch.setattr(chunking, "CHUNK_VALUES", 8192)
    monkeypatch.setattr(swiglu, "VALUES_PER_THREAD", 8192)
    folder = tiny_checkpoint(model_type, num_hidden_layers=4, intermediate_size=256)
    decoder = load_model(folder, precision="nf4", compute_dtype=compute_dtype)
    model = trainable(decoder, spec_of())
    # Nearly all tokens predict: the plan takes all for rows. Many segments: what a call of attention holds
    # meanwhile is little.
    batch = pack_reference(random_entries(decoder.config.vocab_size, [(1, 64)] * 16))
    num_tokens = len(batch.input_ids)
    each = recomputation.token_bytes(
        decoder.config, model.spec, dtype=decoder.compute_dtype, device=decoder.device
    )
    peaks = []
    for num_whole in (1, 3, 4):
        with Peak() as peak:
            model.forward_backward(batch, torch.ones_like, dropout_seed=None, num_whole=num_whole)
        peaks.append(peak.bytes)
        planned = activation_bytes(each, num_layers=4, num_tokens=num_tokens, num_whole=num_whole)
        # Gradients of A and B, masks, rotary tables and a call's own gradients come on top: in a model
        # this narrow up to a third.
        assert 0.95 <= peak.bytes / (planned - recomputation.CONSTANT_BYTES) <= 1.35
    assert peaks[2] - peaks[1] == num_tokens * each.whole
