"""The same ids as the reference on random texts, over small tokenizers of every kind and over the real files.

`PARITY_STRINGS` (default 100,000 in all) and `PARITY_SEED` set how many texts are compared and which. A batch is read
one way, the next one another; what is counted, asserted and printed is texts, each in one reading.
"""

from __future__ import annotations

import os

import pytest

from tests.rust_tokenize.parity.cases import CASES, Case
from tests.rust_tokenize.parity.conftest import REAL, SMALL, load_pair
from tests.rust_tokenize.parity.generators import GENERATORS, texts
from tests.rust_tokenize.parity.oracle import READINGS, Pair, shrink

NUM_STRINGS = int(os.environ.get("PARITY_STRINGS", "100000"))
SEED = int(os.environ.get("PARITY_SEED", "1"))
BATCH = 400
DECODED = 20  # texts of a batch whose ids are decoded too


# Short texts that no generator may leave out.
FIXED = [
    "",
    *" \n\ta1'\u2581\u00e9\u0301\u00a0",
    "  ",
    " a",
    "a ",
    "\r\n",
    "'s",
    "\u2581a",
    " \u2581",
    "<s>",
    " <s> ",
]


def test_fixed_texts(pair: Pair) -> None:
    for reading in pair.readings:
        for text in FIXED:
            pair.compare([text], reading)
        pair.compare(FIXED, reading)
        pair.compare_decoding(FIXED, reading)


def test_random_texts(pair: Pair) -> None:
    material = pair.material()
    share = -(-NUM_STRINGS // (len(SMALL) + len(REAL)))
    num_batches = max(-(-share // BATCH), len(pair.readings))
    compared = 0
    for number in range(num_batches):
        reading = pair.readings[number % len(pair.readings)]
        batch = texts(SEED * 1_000_003 + number, material, BATCH)
        compared += pair.compare(batch, reading)
        pair.compare_decoding(batch[:DECODED], reading)
    assert compared >= share > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.tokenizer}-{case.text!a}")
def test_cases(request: pytest.FixtureRequest, case: Case) -> None:
    assert load_pair(request, case.tokenizer).compare([case.text], case.reading) == 1


def test_a_difference_is_reduced() -> None:
    """The shrinker keeps what matters: here a mark after a capital."""
    found = shrink("some words E\u0301 and more", lambda text: "\u0301" in text and "E" in text)
    assert found == "E\u0301"
    assert shrink("", lambda text: True) == ""


def test_every_generator_and_reading_takes_part(small_pair: Pair) -> None:
    material = small_pair.material()
    drawn = texts(SEED, material, 2000)
    assert drawn == texts(SEED, material, 2000)
    assert len(set(drawn)) > 1500
    assert len(GENERATORS) >= 19
    assert set(small_pair.readings) == set(READINGS)
