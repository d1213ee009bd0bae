"""What the tests of a GPU share: a real one has the whole embedded model, a simulated one a layer of it."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from fam_engine.embedded import DEMO_RECORDS, MODEL
from tests.simulated.gpu import is_simulated


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model, or its first layer."""
    if not is_simulated():
        return "embedded"
    folder = tmp_path_factory.mktemp("one-layer")
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    tensors = load_file(folder / "model.safetensors")
    kept = {n: x for n, x in tensors.items() if ".layers." not in n or ".layers.0." in n}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="session")
def records() -> list[dict[str, object]]:
    """Records to score."""
    lines = DEMO_RECORDS.read_text(encoding="utf-8").splitlines()[: 8 if is_simulated() else 100]
    return [json.loads(line) for line in lines]
