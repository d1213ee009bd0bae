from __future__ import annotations

from pathlib import Path

import pytest

from fam_engine.errors import UsageError
from fam_engine.jobs.evaluation.models import name_adapters


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        ([], []),
        (["/runs/claude/adapter", "/runs/human/adapter"], ["claude", "human"]),
        (["/runs/claude/adapter"], ["claude"]),
        (["/a/claude", "/b/human"], ["claude", "human"]),
        (["/a/claude/adapter", "/b/claude/adapter"], ["a/claude", "b/claude"]),
        (["/a/x", "/a/x/adapter"], ["/a/x", "/a/x/adapter"]),
        (["/runs/base/adapter"], ["runs/base"]),
        (["/adapter"], ["adapter"]),
    ],
)
def test_names_tell_adapters_apart(folders: list[str], names: list[str]) -> None:
    assert name_adapters([Path(folder) for folder in folders]) == names


def test_the_same_adapter_twice_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="twice"):
        name_adapters([Path("/a/b"), Path("/a/../a/b")])
