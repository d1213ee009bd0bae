"""The fork server and the small jobs all tests of faults run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.faults.forking import Ended, run, start_server
from tests.faults.small_jobs import SmallJob, contents, small_jobs


@pytest.fixture(scope="session", autouse=True)
def server(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler")
    start_server(tmp_path_factory.mktemp("library") / "faulty_disk.so")


@pytest.fixture(scope="session")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with positions enough for the prompts of rewriting."""
    folder = tmp_path_factory.mktemp("model") / "roomy"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


@pytest.fixture(scope="session")
def jobs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SmallJob]:
    return small_jobs(model, tmp_path_factory.mktemp("input"))
