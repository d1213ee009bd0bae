"""docs/promises.md names tests, targets and scripts that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")


def test_every_file_it_names_is_there() -> None:
    names = set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE))
    assert len(names) > 10
    places = (ROOT, ROOT / "tests", ROOT / "tests" / "hostile")
    assert not {name for name in names if not any((place / name).is_file() for place in places)}


def test_every_target_it_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", PAGE)) <= targets
