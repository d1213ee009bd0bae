"""An adapter knows the checkpoint it was trained over again, and no other of the same shape."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fam_engine.errors import ModelRefusedError
from fam_engine.model.loading import load_model, with_adapter
from fam_engine.model.merging import plan_merge
from tests.model.conftest import TinyCheckpoint
from tests.model.test_adapter_files import SPECS, saved

MATRIX = "model.layers.1.mlp.down_proj.weight"
TENSORS = "model.safetensors"


@pytest.fixture
def base(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("qwen3")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    saved(base, folder, SPECS[0])
    return folder


def changed(base: Path, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Copy a checkpoint with some of its tensors replaced."""
    shutil.copytree(base, folder)
    save_file(load_file(base / TENSORS) | tensors, folder / TENSORS)
    return folder


def test_another_model_of_the_same_shape_is_refused_everywhere(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    matrix = load_file(base / TENSORS)[MATRIX]
    other = changed(base, tmp_path / "other", {MATRIX: matrix * 1.01})
    with pytest.raises(ModelRefusedError, match="another model of the same shape") as refused:
        load_model(other, adapter=adapter)
    assert refused.value.code == "E_ADAPTER_BASE"
    with pytest.raises(ModelRefusedError, match="another model of the same shape"):
        with_adapter(load_model(other), adapter)
    with pytest.raises(ModelRefusedError, match="another model of the same shape"):
        plan_merge(other, adapter, base="original").write(tmp_path / "merged")


def test_the_same_tensors_elsewhere_are_its_own(base: Path, adapter: Path, tmp_path: Path) -> None:
    copied = changed(base, tmp_path / "copied", {})  # in another order, with another header
    assert load_model(copied).weights.fingerprint == load_model(base).weights.fingerprint
    load_model(copied, adapter=adapter)


def test_what_cannot_be_compared_is_applied(base: Path, adapter: Path, tmp_path: Path) -> None:
    matrix = load_file(base / TENSORS)[MATRIX]
    cast = changed(base, tmp_path / "cast", {MATRIX: matrix.to(torch.float16) * 2})
    load_model(cast, adapter=adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors, adapter / "adapter_model.safetensors")  # says nothing of its base any more
    load_model(changed(base, tmp_path / "other", {MATRIX: matrix * 1.01}), adapter=adapter)
