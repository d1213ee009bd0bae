"""From a name to a folder: what is found, fetched, refused and hashed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import fam_engine
from fam_engine.errors import ModelRefusedError
from fam_engine.model.folders import hash_model, resolve_model
from fam_engine.model.loading import load_model
from tests.model.conftest import TinyCheckpoint


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
    assert folder == Path(fam_engine.__file__).parent / "embedded" / "model"
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
