"""From a name to a model: what is found, chosen and refused."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from fam_engine.errors import DeviceError, ModelRefusedError, UsageError
from fam_engine.model import loading
from fam_engine.model.checkpoint import Precision
from fam_engine.model.config import ModelConfig
from fam_engine.model.loading import (
    choose_compute_dtype,
    choose_device,
    has_native_bf16,
    hash_model,
    load_model,
    resolve_model,
)
from fam_engine.model.memory import weight_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class TinyCheckpoint(Protocol):
    def __call__(self, model_type: str, **config_overrides: object) -> Path: ...


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


def test_nothing_is_looked_up_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelRefusedError, match=r"`org/name` is not a folder.*--download"):
        load_model("org/name")
    with pytest.raises(ModelRefusedError, match=r"is not a folder \(check the path\)"):
        resolve_model("/no/such/folder", download=True)


def test_download_gives_folder_and_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    asked: dict[str, Any] = {}

    def snapshot_download(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked.update(hub_id=hub_id, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_model("org/name", download=True) == (folder, "0123abc")
    assert asked["hub_id"] == "org/name"
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in asked["patterns"])
    assert resolve_model(folder, download=True) == (folder, None)


def test_failed_download_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelRefusedError, match=r"E_MODEL_DOWNLOAD.*no network"):
        resolve_model("org/name", download=True)


def test_embedded_lies_in_the_package() -> None:
    folder, commit = resolve_model("embedded", download=False)
    assert folder == Path(loading.__file__).parents[1] / "embedded" / "model"
    assert commit is None


def test_hash_is_of_names_and_bytes(tiny_checkpoint: TinyCheckpoint) -> None:
    one, two = tiny_checkpoint("llama"), tiny_checkpoint("llama")
    before = hash_model(one)
    assert before == hash_model(two)
    (two / "README.md").write_text("not read, not hashed")
    assert before == hash_model(two)
    (two / "tokenizer.json").write_text("{}")
    assert before != hash_model(two)
    weights = one / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert before != hash_model(one)
    with pytest.raises(ModelRefusedError, match="is not a folder"):
        hash_model(one / "absent")


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError) as caught:
        choose_device("cuda")
    assert caught.value.code == "E_DEVICE"
    assert choose_device("auto") == choose_device("cpu") == CPU


def test_auto_takes_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == CUDA
    assert choose_device("cpu") == CPU


def test_bf16_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    def cpu_has(**capabilities: bool) -> bool:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))
        return has_native_bf16(CPU)

    def gpu_has(major: int) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 5))
        return has_native_bf16(CUDA)

    assert cpu_has(avx512_bf16=True)
    assert cpu_has(avx512_bf16=False, amx_bf16=True)
    assert not cpu_has(avx2=True, avx512_bf16=False)
    assert gpu_has(8)
    assert not gpu_has(7)


def test_compute_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(loading, "has_native_bf16", lambda device, native=native: native)
        assert choose_compute_dtype("auto", precision="nf4", device=CPU) == expected
        assert choose_compute_dtype("auto", precision="fp32", device=CPU) == torch.float32
    assert choose_compute_dtype("bf16", precision="nf4", device=CPU) == torch.bfloat16
    assert choose_compute_dtype("fp32", precision="nf4", device=CPU) == torch.float32
    assert choose_compute_dtype("fp64", precision="fp32", device=CPU) == torch.float64
    with pytest.raises(UsageError, match="E_COMPUTE_DTYPE"):
        choose_compute_dtype("bf16", precision="fp32", device=CPU)


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
    monkeypatch.setattr(loading, "load_weights", lambda *_, **__: pytest.fail("they were read"))
    monkeypatch.setattr(loading, "free_bytes", lambda _: needed - 1)
    with pytest.raises(DeviceError, match="GiB of the GPU are free") as refusal:
        load_model(folder, precision=precision, compute_dtype="bf16")
    assert hint in str(refusal.value.hint)
    monkeypatch.setattr(loading, "free_bytes", lambda _: needed)
    with pytest.raises(pytest.fail.Exception):
        load_model(folder, precision=precision, compute_dtype="bf16")
