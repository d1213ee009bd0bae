"""The fork server and the small jobs all tests of faults run."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.forking import COUNT, faults, run, start_server
from tests.faults.small_jobs import OUT, SmallJob, contents, small_jobs


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


@dataclass(frozen=True)
class Whole:
    """An undisturbed run of a job.

    Attributes:
        folder: Where it ran.
        contents: What it left.
        num_calls: How many calls changed its folder.
        seconds: How long it took.
    """

    folder: Path
    contents: dict[str, Any]
    num_calls: int
    seconds: float


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[SmallJob], Whole]:
    """Run a job undisturbed, once."""

    @functools.cache
    def run_whole(job: SmallJob) -> Whole:
        folder = tmp_path_factory.mktemp(job.command) / "whole"
        began = time.perf_counter()
        ended = run(job.line, folder, faults(folder / OUT, COUNT))
        seconds = time.perf_counter() - began
        assert ended.code == job.finished, ended.errors
        return Whole(folder, contents(folder / OUT), ended.num_calls, seconds)

    return run_whole
