"""Small and real tokenizers loaded twice, and the number of texts compared at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SHARED
from tests.rust_tokenize.parity.definitions import small_tokenizers
from tests.rust_tokenize.parity.oracle import COMPARED, Pair

SMALL = small_tokenizers()
# A fixture of another project whose merges are no list: the reference refuses it, and so do we.
NOT_ONE = "added_tokens_ortx"
REAL = sorted(path.parent.name for path in SHARED.glob("tokenizers/*/tokenizer.json"))
REAL = [name for name in REAL if name != NOT_ONE]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder for the definitions our loader keeps: not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAM_ENGINE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a `NAME.json` for each small tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    for name, definition in SMALL.items():
        (folder / f"{name}.json").write_text(json.dumps(definition))
    return folder


def load_pair(request: pytest.FixtureRequest, name: str) -> Pair:
    """Load a tokenizer by name; skips without `tokenizers`, or a real one without its file."""
    pytest.importorskip("tokenizers")
    if name in SMALL:
        folder: Path = request.getfixturevalue("small_folder")
        return Pair(name, folder / f"{name}.json")
    shared: Path = request.getfixturevalue("shared")
    path = shared / "tokenizers" / name / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"needs ../shared/tokenizers/{name}")
    return Pair(name, path)


@pytest.fixture(scope="module", params=[*SMALL, *(REAL or ["gpt2"])])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each small and each real tokenizer, one after the other."""
    return load_pair(request, request.param)


@pytest.fixture(scope="module", params=[*SMALL])
def small_pair(request: pytest.FixtureRequest) -> Pair:
    """Each small tokenizer."""
    return load_pair(request, request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many texts were compared with the reference."""
    if COMPARED:
        import tokenizers

        engines = sorted({engine for _, engine in COMPARED})
        counts = ", ".join(
            f"{engine} {sum(count for (_, e), count in COMPARED.items() if e == engine):,}"
            for engine in engines
        )
        terminalreporter.write_line(
            f"parity: {COMPARED.total():,} texts compared with tokenizers {tokenizers.__version__}"
            f" over {len(COMPARED)} tokenizers, by engine: {counts}"
        )
