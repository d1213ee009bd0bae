"""What ids must not depend on: threads, batches, order, what was encoded before; and long texts come to an end."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fam_engine import _rust_tokenize as rt
from tests.rust_tokenize.parity.generators import texts
from tests.rust_tokenize.parity.oracle import Pair

ROOT = Path(__file__).parents[3]
THREADS = (1, 2, 3)


def test_ids_depend_on_the_text_alone(small_pair: Pair) -> None:
    """Fresh or warm, in any batch, in any order, on any number of threads."""
    drawn = texts(
        5, small_pair.material(), 3000
    )  # more than 32 KB a thread, so that threads do start
    for reading in small_pair.readings[::3]:
        expected = dict(zip(drawn, small_pair.their_ids(drawn, reading), strict=True))
        for num_threads in THREADS:
            for order in (drawn, drawn[::-1], sorted(drawn)):
                found = small_pair.our_ids(order, reading, num_threads)
                assert found == [expected[text] for text in order]
        alone = [small_pair.our_ids([text], reading)[0] for text in drawn[:300]]
        assert alone == [expected[text] for text in drawn[:300]]


def test_one_tokenizer_in_many_threads(small_pair: Pair) -> None:
    reading = small_pair.readings[0]
    batches = [texts(seed, small_pair.material(), 300) for seed in range(8)]
    expected = [small_pair.their_ids(batch, reading) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda batch: small_pair.our_ids(batch, reading, None), batches)
            assert [*found] == expected


def test_a_first_call_gives_the_ids_of_a_later_one(small_pair: Pair, small_folder: Path) -> None:
    drawn = texts(6, small_pair.material(), 100)
    warm = small_pair.our_ids(drawn, small_pair.readings[0])
    for text, ids in zip(drawn, warm, strict=True):
        if len(text) % 4 == 0:  # loading takes longer than encoding
            fresh = rt.Tokenizer.from_file(small_folder / f"{small_pair.name}.json")
            assert fresh.encode_batch([text])[0].tolist() == ids


def test_more_words_than_a_cache_holds(small_pair: Pair) -> None:
    """Many different pretokens, long ones too: whatever was thrown out comes back the same."""
    letters = "abcdefghijklmnopqrstuvwxyz\u00e9\u4e2d"
    many = [" ".join(map("".join, itertools.product(pair, letters, letters))) for pair in letters]
    long = [(left + right) * 140 for left in letters for right in letters]
    reading = small_pair.readings[0]
    expected = small_pair.their_ids([*many, *long], reading)
    for _ in range(2):
        assert small_pair.our_ids([*many, *long], reading) == expected


def test_documents_at_the_borders_of_chunks(small_pair: Pair) -> None:
    """Sizes around powers of two in bytes, a few of them in one batch, then one far larger."""
    piece = "word, w\u00f6rd \u4e16\u754c's  \n"
    sizes = [2**power + off for power in (6, 8, 12, 15, 16) for off in (-1, 0, 1)]
    batch = [(piece * (size // 8))[:size] for size in sizes] + [piece * 4_000]
    for reading in small_pair.readings[:2]:
        expected = small_pair.their_ids(batch, reading)
        for num_threads in THREADS:
            assert small_pair.our_ids(batch, reading, num_threads) == expected


# A million of each: letters, blanks, newlines, digits, marks, the blank's stand-in, lattices, an added token.
LONG = [
    *["a", " ", "\n", "1", "\u00e9", "\u0301", "\u4e2d", "\u2581", "!", "'", "\U0001f642"],
    *[
        "\u0301\u0323",
        " \n",
        "ab",
        "A",
        "\u02b0",
        "<s>",
        "<mask>",
        "<|user|> ",
        "\u1100\u1161",
        "\u00a0",
    ],
]
NUM_CHARACTERS = 1_000_000
SECONDS = (
    60  # of computing for all of them; work that grows with the square of the length takes hours
)
SCRIPT = """
import json, resource, sys
from fam_engine import _rust_tokenize as rt
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
tokenizer = rt.Tokenizer.from_file(sys.argv[1])
for unit in json.load(sys.stdin):
    ids, _ = tokenizer.encode_batch([unit * (int(sys.argv[3]) // len(unit))])
    print(len(ids), flush=True)
"""


def test_long_runs(small_pair: Pair) -> None:
    for unit in LONG:
        small_pair.compare([unit * (20_000 // len(unit))], small_pair.readings[0])


# One of each scanner and of each way to cut; in `small_crossing` the text is one piece.
BOUNDED = ["gpt2", "neox", "cl100k", "o200k", "deepseek", "llama2", "crossing"]


@pytest.mark.parametrize("name", [f"small_{name}" for name in BOUNDED])
def test_a_million_equal_characters(name: str, small_folder: Path) -> None:
    path = small_folder / f"{name}.json"
    if rt.Tokenizer.from_file(path).engine == "tokenizers":
        pytest.skip("the linked crate makes no such promise")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(SECONDS), str(NUM_CHARACTERS)],
        cwd=ROOT,
        input=json.dumps(LONG),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name}, stopped after {done.stdout.split()}: {done.stderr}"
    counts = [int(line) for line in done.stdout.split()]
    assert len(counts) == len(LONG)
    assert min(counts) > 0
