"""Files written tensor by tensor, as the format's own library reads them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from fam_engine.model.safetensors_files import read_header
from fam_engine.model.safetensors_writing import write_tensors


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    kinds = {
        "b": (torch.bfloat16, (3, 5)),
        "a": (torch.bfloat16, (0, 4)),
        "wide": (torch.float32, (7,)),
        "bytes": (torch.uint8, (3,)),
    }
    values = {name: torch.ones(shape).to(dtype) * 2 for name, (dtype, shape) in kinds.items()}
    made = []

    def make(name: str, dtype: torch.dtype) -> torch.Tensor:
        made.append(name)
        return values[name].to(dtype)

    assert write_tensors(tmp_path / "x.safetensors", kinds, make) == 30 + 28 + 3
    assert made == ["wide", "a", "b", "bytes"]
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], values[name]) for name in values)
    starts = [info.start for info in read_header(tmp_path / "x.safetensors").values()]
    assert starts[0] % 8 == 0
