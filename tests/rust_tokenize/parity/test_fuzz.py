"""The same ids as the reference on random texts, over small tokenizers of every kind and over the real files.

`PARITY_STRINGS` (default 100,000 in all) and `PARITY_SEED` set how many texts are compared and which. A batch is read
one way, the next one another; what is counted, asserted and printed is texts, each in one reading.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fam_engine import _rust_tokenize as rt
from tests.rust_tokenize.parity.cases import CASES, Case
from tests.rust_tokenize.parity.conftest import REAL, SMALL, load_pair
from tests.rust_tokenize.parity.definitions import Definition
from tests.rust_tokenize.parity.generators import GENERATORS, texts
from tests.rust_tokenize.parity.oracle import READINGS, Mismatch, Pair, shrink

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


def pattern(definition: Definition, old: str, new: str) -> None:
    text = json.dumps(definition["pre_tokenizer"]).replace(old, new)
    assert text != json.dumps(definition["pre_tokenizer"])
    definition["pre_tokenizer"] = json.loads(text)


def swap_merges(definition: Definition) -> None:
    merges = definition["model"]["merges"]
    merges[:100] = merges[99::-1]


def strip_less(definition: Definition) -> None:
    [user] = [token for token in definition["added_tokens"] if token["content"] == "<|user|>"]
    user["rstrip"] = False


# Errors a tokenizer could have, each made by giving it another definition than the reference has.
ERRORS: list[tuple[str, Callable[[Definition], object]]] = [
    ("small_gpt2", swap_merges),
    ("small_gpt2", strip_less),
    ("small_gpt2_prefix", lambda d: d["pre_tokenizer"].update(add_prefix_space=False)),
    ("small_neox", lambda d: d.update(normalizer=None)),
    ("small_neox", lambda d: d.update(normalizer={"type": "NFKC"})),
    ("small_neox", lambda d: d["added_tokens"][7].update(normalized=False)),
    ("small_cl100k", lambda d: d["model"].update(ignore_merges=False)),
    ("small_cl100k", lambda d: pattern(d, "(?i:", "(?:")),
    ("small_cl100k", lambda d: pattern(d, "{1,3}", "{1,4}")),
    ("small_cl100k", lambda d: pattern(d, "'ll", "'l")),
    ("small_cl100k", lambda d: pattern(d, r"\\s*[", r"\\s?[")),
    ("small_cl100k", lambda d: pattern(d, "(?i:'s|", "'[sS]|(?i:")),
    ("small_qwen2", lambda d: pattern(d, r"|\\s+(?!\\S)", "")),
    ("small_o200k", lambda d: pattern(d, r"\\p{Lt}", "")),
    ("small_o200k", lambda d: pattern(d, "[\\\\r\\\\n/]*", "[\\\\r\\\\n]*")),
    ("small_deepseek", lambda d: pattern(d, "\\u9fa5", "\\u9fa6")),
    ("small_deepseek", lambda d: d["pre_tokenizer"]["pretokenizers"].pop(1)),
    (
        "small_digits",
        lambda d: pattern(d, '"individual_digits": true', '"individual_digits": false'),
    ),
    ("small_llama2", lambda d: d["normalizer"]["normalizers"].pop(0)),
    ("small_mistral", lambda d: d["pre_tokenizer"].update(prepend_scheme="always")),
    ("small_crossing", lambda d: d["model"]["merges"].remove(["s", "\u2581t"])),
    ("small_unknown", lambda d: d["model"].update(fuse_unk=False)),
    ("small_unknown", lambda d: d["model"].update(byte_fallback=False)),
]


@pytest.mark.parametrize(("name", "spoil"), ERRORS)
def test_errors_are_found_and_reduced(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
    spoil: Callable[[Definition], object],
) -> None:
    """Otherwise that none was found would mean nothing."""
    pair = load_pair(request, name)
    spoilt = copy.deepcopy(SMALL[name])
    spoil(spoilt)
    (tmp_path / "spoilt.json").write_text(json.dumps(spoilt))
    pair.ours = rt.Tokenizer.from_file(tmp_path / "spoilt.json")
    share = 100_000 // (len(SMALL) + len(REAL))
    drawn = texts(SEED, pair.material(), share)
    with pytest.raises(Mismatch, match="Case") as caught:
        pair.compare(drawn, pair.readings[1])
    reduced = str(caught.value).split(repr(name))[1].splitlines()[0]
    assert len(reduced) < 160


def test_every_generator_and_reading_takes_part(small_pair: Pair) -> None:
    material = small_pair.material()
    drawn = texts(SEED, material, 2000)
    assert drawn == texts(SEED, material, 2000)
    assert len(set(drawn)) > 1500
    assert len(GENERATORS) >= 19
    assert set(small_pair.readings) == set(READINGS)
