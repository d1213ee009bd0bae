"""The benchmarks as modules, as their scripts see each other, and a tiny model for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session", autouse=True)
def scripts() -> Iterator[None]:
    """Let benchmarks be imported by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="session")
def models(scripts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny NF4 model is."""
    import random_models

    folder = tmp_path_factory.mktemp("models")
    random_models.nf4_model(folder, "tiny", "cpu")
    return folder
