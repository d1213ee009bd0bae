"""Everything that can be listed, compared with the reference; minutes a tokenizer, so no part of the tests.

`python -m tests.rust_tokenize.parity.exhaustive [NAME...]` (default: all) takes small tokenizers and real ones by name:
every Unicode scalar alone and in six contexts, every entry of the vocabulary alone and after a blank, the concatenation
of every merge, every pair of bytes that is a text, and runs of a million characters. It prints a line of JSON with the
counts for each tokenizer, and stops at the first difference, reduced.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tests.conftest import SHARED
from tests.rust_tokenize.parity.conftest import REAL, SMALL
from tests.rust_tokenize.parity.oracle import Pair, Reading, entry_text
from tests.rust_tokenize.parity.test_invariants import LONG, NUM_CHARACTERS

BATCH = 20_000
SCALARS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def scalars() -> Iterator[str]:
    """Every scalar alone, after and before a letter, a blank, and after a digit and an apostrophe."""
    for context in ("{}", "a{}", "{}a", " {}", "{} ", "1{}", "'{}"):
        before, after = context.split("{}")
        yield from (before + scalar + after for scalar in SCALARS)


def entries(pair: Pair) -> Iterator[str]:
    """Every entry alone and after a blank."""
    for entry in pair.entries():
        yield entry
        yield " " + entry


def merges(pair: Pair) -> Iterator[str]:
    """The concatenation of every merge, after a blank if it has one."""
    byte_level = "ByteLevel" in json.dumps(pair.definition.get("pre_tokenizer"))
    for merge in pair.definition["model"].get("merges", []):
        token = "".join(merge.split(" ") if isinstance(merge, str) else merge)
        text = entry_text(token) if byte_level else token.replace("\u2581", " ")
        if text:
            yield text


def byte_pairs() -> Iterator[str]:
    """Every two bytes that are UTF-8."""
    for number in range(1 << 16):
        try:
            yield number.to_bytes(2, "big").decode()
        except UnicodeDecodeError:
            continue


def compared(pair: Pair, texts: Iterable[str]) -> int:
    """Compare in batches, specials parsed; gives how many."""
    texts, count = iter(texts), 0
    while batch := list(islice(texts, BATCH)):
        count += pair.compare(batch, Reading())
    return count


def main(names: list[str]) -> None:
    """Compare everything for the tokenizers named."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = SHARED / "tokenizers" / name / "tokenizer.json"
            if name in SMALL:
                path = Path(folder, f"{name}.json")
                path.write_text(json.dumps(SMALL[name]))
            pair = Pair(name, path)
            start = time.process_time()
            counts = {
                "scalars": compared(pair, scalars()),
                "entries": compared(pair, entries(pair)),
                "merges": compared(pair, merges(pair)),
                "byte_pairs": compared(pair, byte_pairs()),
                "runs": sum(
                    compared(pair, [unit * (NUM_CHARACTERS // len(unit))]) for unit in LONG
                ),
            }
            seconds = round(time.process_time() - start)
            row = {"tokenizer": name, "engine": pair.ours.engine} | counts
            print(json.dumps(row | {"cpu_seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or [*SMALL, *REAL])
