"""From a name to a model: what is found, chosen and refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fam_engine.config import Precision
from fam_engine.errors import DeviceError, ModelRefusedError, UsageError
from fam_engine.model import loading
from fam_engine.model.config import ModelConfig
from fam_engine.model.loading import load_model
from fam_engine.model.memory import weight_bytes
from tests.model.conftest import TinyCheckpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_load_model_gives_a_decoder(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama")
    decoder = load_model(folder, precision="bf16", compute_dtype="fp32", device="cpu")
    assert decoder.config.hidden_size == 64
    assert (decoder.precision, decoder.compute_dtype, decoder.device) == (
        "bf16",
        torch.float32,
        CPU,
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"precision": "int8"}, "precision is 'int8', expected one of nf4, bf16, fp32"),
        ({"compute_dtype": "fp16"}, "compute_dtype is 'fp16', expected one of auto, bf16"),
        ({"device": "gpu"}, "device is 'gpu', expected one of auto, cpu, cuda"),
    ],
)
def test_a_choice_there_is_not_is_refused(choice: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        load_model("embedded", **choice)


def test_the_embedded_model_mistyped_is_suggested() -> None:
    with pytest.raises(ModelRefusedError, match="did you mean `embedded`"):
        load_model("embeded")


@pytest.mark.parametrize(
    ("precision", "hint"), [("bf16", "use --precision nf4"), ("nf4", "smaller model")]
)
def test_weights_that_do_not_fit_a_gpu_are_not_read(
    tiny_checkpoint: TinyCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    hint: str,
) -> None:
    folder = tiny_checkpoint("llama")
    config = ModelConfig.from_folder(folder)
    needed = weight_bytes(config, precision, torch.bfloat16)
    monkeypatch.setattr(loading, "choose_device", lambda _: CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(loading, "load_weights", lambda *_, **__: pytest.fail("they were read"))
    monkeypatch.setattr(loading, "free_bytes", lambda _: needed - 1)
    with pytest.raises(DeviceError, match="GiB of the GPU are free") as refusal:
        load_model(folder, precision=precision, compute_dtype="bf16")
    assert hint in str(refusal.value.hint)
    monkeypatch.setattr(loading, "free_bytes", lambda _: needed)
    with pytest.raises(pytest.fail.Exception):
        load_model(folder, precision=precision, compute_dtype="bf16")
