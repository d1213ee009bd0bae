"""Tensors through small buffers: the bytes of the file, on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fam_engine.errors import ModelRefusedError
from fam_engine.model.safetensors_files import TensorInfo, read_header
from fam_engine.model.staging import Stage
from tests.kernels.on import DEVICE

TENSORS = {
    "nothing": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
    "just a piece": torch.arange(32, dtype=torch.bfloat16),
    "a byte more": torch.arange(65, dtype=torch.uint8),
    "many pieces": torch.randn(13, 37, generator=torch.Generator().manual_seed(0)),
}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, TensorInfo]:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return read_header(tmp_path / "model.safetensors")


def test_every_tensor_arrives_whole(stored: dict[str, TensorInfo]) -> None:
    stage = Stage(DEVICE, piece_bytes=64)
    arrived = {name: stage.read(stored[name]) for name in TENSORS}
    for name, expected in TENSORS.items():
        found = arrived[name]
        assert (found.dtype, found.shape, found.device.type) == (
            expected.dtype,
            expected.shape,
            DEVICE.type,
        )
        assert torch.equal(found.cpu(), expected), name


def test_a_file_that_has_become_shorter_is_refused(stored: dict[str, TensorInfo]) -> None:
    info = max(stored.values(), key=lambda one: one.start)
    with info.path.open("r+b") as file:
        file.truncate(info.start + info.num_bytes - 1)
    with pytest.raises(ModelRefusedError, match=f"reading the tensor `{info.name}`: the file ends"):
        Stage(DEVICE, piece_bytes=64).read(info)
