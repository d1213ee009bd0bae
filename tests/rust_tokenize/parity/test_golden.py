"""The ids of real text are those frozen from the pinned reference; needs no reference installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fam_engine import _rust_tokenize as rt
from tests.rust_tokenize.parity import golden

FROZEN = json.loads(golden.FILE.read_text())


@pytest.fixture(scope="module")
def definitions() -> dict[str, golden.Definition]:
    return golden.definitions()


@pytest.mark.parametrize("name", FROZEN["golden"])
def test_frozen_ids(definitions: dict[str, golden.Definition], name: str, tmp_path: Path) -> None:
    if name not in definitions:
        pytest.skip(f"needs ../shared/tokenizers/{name}")
    row = FROZEN["golden"][name]
    assert golden.file_hash(definitions[name]) == row["file"], "another file than the frozen one"
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definitions[name]))
    ids, offsets = rt.Tokenizer.from_file(path).encode_batch(golden.TEXTS)
    found = [golden.hash_of(each) for each in np.split(ids, offsets[1:-1])]
    assert dict(zip(golden.TEXTS, found, strict=True)) == dict(
        zip(golden.TEXTS, row["ids"], strict=True)
    )
    assert len(ids) == row["tokens"]
