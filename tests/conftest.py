"""What all tests share: where trial material lies, and a folder of small helpers."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real tokenizers, configurations and models; tests that need it skip without."""
    if not SHARED.is_dir():
        pytest.skip("needs the trial material beside the repository (../shared)")
    return SHARED
