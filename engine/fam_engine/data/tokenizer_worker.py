"""The child process that tries a tokenizer out before its parent loads it.

In (arguments): a `tokenizer.json` for which there is only the library, and the seconds it may take. Out: an exit code;
any but 0 says that loading it, or encoding short and long texts with it, ends or stalls the process. What is merely an
error is not judged here: the parent meets it again and says so.
"""

from __future__ import annotations

import contextlib
import sys

from fam_engine._rust_tokenize import Tokenizer
from fam_engine.data.children import allow_seconds, become_child

MEMORY_BYTES = 4 << 30
# Long runs are what expressions with nested repetitions take exponential time for.
_TEXTS = (
    "",
    "a",
    "Two words.\n",
    "\U0001f600\u00e9\u4e2d",
    " " * 10_000,
    "a" * 100_000,
    "1 " * 5_000,
)


def main() -> None:
    """Try a tokenizer out."""
    path, seconds = sys.argv[1:]
    become_child(MEMORY_BYTES)
    allow_seconds(int(seconds))
    with contextlib.suppress(ValueError, RuntimeError, OSError):
        tokenizer = Tokenizer.from_file(path)
        texts = (*_TEXTS, *(name for name, _ in tokenizer.added_tokens()))
        for text in texts:
            for continuation in (False, True):
                with contextlib.suppress(ValueError, RuntimeError):
                    ids, _ = tokenizer.encode_batch([text], continuation=continuation)
                    tokenizer.decode(ids)


if __name__ == "__main__":
    main()
