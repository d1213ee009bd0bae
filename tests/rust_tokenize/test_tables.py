"""The native tokenizer's tables are those of the installed reference."""

from __future__ import annotations

import re
from pathlib import Path

from rust_tokenize.tables import generate

NATIVE = Path(__file__).parents[2] / "rust_tokenize" / "src" / "native"


def carried_hash(name: str) -> str:
    found = re.search(r'SHA256: &str =\s*"([0-9a-f]{64})"', (NATIVE / name).read_text())
    assert found is not None
    return found[1]


def test_the_reference_still_has_these_classes() -> None:
    """Every Unicode scalar; the Rust tests compare the tables with the same hash."""
    assert generate.scalar_hash(generate.class_flags()) == carried_hash("class_tables.rs")


def test_the_reference_still_composes_so() -> None:
    assert generate.Nfc().hash() == carried_hash("nfc_tables.rs")
