"""Loads many definitions nobody checked, ours beside the reference; run in a process of its own, with little memory.

`python -m tests.rust_tokenize.parity.hostile FOLDER SEED COUNT` prints how many definitions were judged and how many of
them loaded, by engine. A panic of ours, a definition only we load, other ids, an error that is not ours: it stops with
the file left in FOLDER. A crash leaves it there too, which is why this is a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import sys
from collections import Counter
from pathlib import Path

from fam_engine import _rust_tokenize as rt
from tests.rust_tokenize.parity.definitions import small_tokenizers
from tests.rust_tokenize.parity.generators import Material, texts
from tests.rust_tokenize.parity.oracle import Mismatch, Pair, Reading, as_read
from tests.rust_tokenize.parity.variants import damage, vary

MEMORY = 4 << 30  # bytes of address space: an id of 2^32 must not become a table
CACHED = 1 << 18  # bytes from which on a definition is kept between processes
# Refusals of definitions the reference takes.
OURS_ALONE = re.compile(
    r"dropout|but loads as|does not fit 32 bits|normalizes to nothing|duplicate field|version is"
    r"|its file cannot be used: (?!missing|invalid (type|length|value))"  # JSON laxer in Python
)


def is_our_panic(message: str) -> bool:
    """Whether an error is a panic, and not one inside a crate that we only call."""
    return "internal error" in message and "/registry/" not in message


def they_load(text: str) -> bool | None:
    """Whether the reference takes the sections that we read; None where Python's `json` cannot tell them."""
    import tokenizers

    try:
        sections = json.dumps(as_read(text), allow_nan=False)
    except (ValueError, RecursionError, AttributeError):
        return None
    child = os.fork()  # it panics at some definitions, and some of its panics end the process
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            tokenizers.Tokenizer.from_str(sections)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def judge(path: Path, material: Material, seed: int) -> str:
    """Load a file and compare; gives the engine, or why there was nothing to compare."""
    theirs = they_load(path.read_bytes().decode(errors="replace"))
    try:
        engine = rt.Tokenizer.from_file(path).engine
    except rt.TokenizerError as error:
        if is_our_panic(str(error)):
            raise
        if theirs and not OURS_ALONE.search(str(error)):
            raise Mismatch(f"refused, the reference takes it: {error}") from error
        return "refused"
    if theirs is False:
        raise Mismatch(f"loaded ({engine}), the reference refuses it")
    if theirs is None:
        return "not compared"
    pair = Pair(path.name, path)
    for number, reading in enumerate(pair.readings):
        for each in texts(seed + number, material, 12):
            compare(pair, each, reading)
    pair.ours.decode([0, 5, 2**31 - 1, 2**31, 2**32 - 1, *range(250, 300)])
    return engine


def compare(pair: Pair, text: str, reading: Reading) -> None:
    """Compare one text, errors included."""
    try:
        pair.our_ids([text], reading)
    except rt.TokenizerError as error:
        if is_our_panic(str(error)):
            raise
        try:
            pair.their_ids([text], reading)
        except BaseException:
            return
        if OURS_ALONE.search(str(error)) or "blank in front of every word" in str(error):
            return
        raise
    pair.compare([text], reading)


def main() -> None:
    """Judge COUNT definitions of SEED."""
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["FAM_ENGINE_CACHE"] = str(folder)
    small = [*small_tokenizers(100 * seed, borders=False).values()]
    outcomes: Counter[str] = Counter()
    path = folder / "tokenizer.json"
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        definition = rng.choice(small)
        data = vary(rng, definition) if rng.random() < 0.5 else damage(rng, definition)
        if large := rng.random() < 0.1:  # then it is worth a place in the cache
            data = data.replace(b"{", b"{" + b" " * CACHED, 1)
        path.write_bytes(data)
        contents = [token["content"] for token in definition["added_tokens"]]
        vocab = [
            token.replace("\u0120", " ").replace("\u2581", " ")
            for token in definition["model"]["vocab"]
        ]
        material = Material(
            vocab, [*contents, "ab", "abc", "<s", "  ", "e\u0301", "\u2581the", "A"]
        )
        try:
            outcome = judge(path, material, seed + number)
            if large:  # from the cache, if it was kept
                assert judge(path, material, seed + number) == outcome
            outcomes[outcome] += 1
        except BaseException:
            print(f"definition {number} of seed {seed}", flush=True)
            raise
    path.unlink()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
