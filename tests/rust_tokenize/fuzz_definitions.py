"""Writes the small tokenizers as files for the fuzz target `encoder`.

`python -m tests.rust_tokenize.fuzz_definitions FOLDER`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.rust_tokenize.parity.definitions import small_tokenizers


def main() -> None:
    """Write them into FOLDER."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, definition in small_tokenizers().items():
        (folder / f"{name}.json").write_text(json.dumps(definition))


if __name__ == "__main__":
    main()
