"""The child process that encodes texts with a tokenizer that only the library `tokenizers` knows.

In (arguments): a `tokenizer.json` that has been tried out, and the seconds that a request may take; (standard input): a
JSON line a request, the arguments of `encode_batch`. Out (standard output): one JSON line each,
`{"ids": ..., "offsets": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from fam_engine._rust_tokenize import Tokenizer
from fam_engine.data.children import allow_seconds, become_child

MEMORY_BYTES = 4 << 30


def _encoded(tokenizer: Tokenizer, request: dict[str, Any]) -> dict[str, Any]:
    try:
        ids, offsets = tokenizer.encode_batch(**request)
    except (ValueError, RuntimeError) as error:
        return {"error": str(error)}
    return {"ids": ids.tolist(), "offsets": offsets.tolist()}


def main() -> None:
    """Serve requests until standard input ends."""
    path, seconds = sys.argv[1:]
    become_child(MEMORY_BYTES)
    tokenizer = Tokenizer.from_file(path)
    for line in sys.stdin:
        allow_seconds(int(seconds))
        print(json.dumps(_encoded(tokenizer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
