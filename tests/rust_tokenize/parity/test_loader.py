"""Definitions nobody checked end in the reference's ids or in a refusal: never in a panic, a crash or other ids.

`PARITY_DEFINITIONS` (default 300) and `PARITY_SEED` set how many and which.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fam_engine import _rust_tokenize as rt
from tests.rust_tokenize.parity.conftest import NOT_ONE, SMALL
from tests.rust_tokenize.parity.definitions import Definition, added

NUM_DEFINITIONS = int(os.environ.get("PARITY_DEFINITIONS", "300"))
SEED = os.environ.get("PARITY_SEED", "1")
ROOT = Path(__file__).parents[3]
TEXTS = [
    "Hello world",
    "the  quick <s> brown\n\u00e9\u4e2d",
    " \U0001f642 <|user|> x",
    "\x00Zq",
    "",
]


def test_definitions_nobody_checked(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    command = [sys.executable, "-m", "tests.rust_tokenize.parity.hostile"]
    done = subprocess.run(
        [*command, str(tmp_path), SEED, str(NUM_DEFINITIONS)],
        cwd=ROOT,
        env=os.environ | {"RUST_BACKTRACE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{done.stdout[-500:]}\n{done.stderr[-2000:]}\nthe file: {tmp_path}"
    )
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == NUM_DEFINITIONS
    loaded = NUM_DEFINITIONS - outcomes["refused"] - outcomes.get("not compared", 0)
    assert loaded > NUM_DEFINITIONS // 5  # otherwise hardly anything was compared
    assert outcomes["refused"] > NUM_DEFINITIONS // 5


def write(folder: Path, definition: Definition) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(definition))
    return path


def test_a_file_that_is_not_utf8_is_refused_even_where_it_is_not_read(tmp_path: Path) -> None:
    definition = json.dumps({**SMALL["small_gpt2"], "truncation": None}).encode()
    path = tmp_path / "tokenizer.json"
    path.write_bytes(definition.replace(b'"truncation": null', b'"truncation": "\x88"'))
    with pytest.raises(rt.TokenizerError, match="invalid utf-8 sequence of 1 bytes from index"):
        rt.Tokenizer.from_file(path)


def test_a_token_that_normalizes_to_nothing_is_refused(tmp_path: Path) -> None:
    """The reference would find it everywhere, forever."""
    definition = SMALL["small_gpt2"]
    tokens = [added(len(definition["model"]["vocab"]), " ", normalized=True)]
    nothing = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
    path = write(
        tmp_path,
        definition | {"added_tokens": tokens, "normalizer": nothing, "post_processor": None},
    )
    with pytest.raises(rt.TokenizerError, match="added token ` ` normalizes to nothing"):
        rt.Tokenizer.from_file(path)


def test_a_message_that_is_no_text_is_an_ordinary_error(tmp_path: Path) -> None:
    """The crate takes the prefix off the second part of a merge, even if that cuts a character."""
    model = {"type": "BPE", "vocab": {"a": 0, "\u2581\u2581": 1}, "merges": [["a", "\u2581\u2581"]]}
    prefixed = {"model": model | {"continuing_subword_prefix": "##"}}
    bare = SMALL["small_gpt2"] | {"added_tokens": [], "post_processor": None}
    with pytest.raises(rt.TokenizerError, match="out of vocabulary"):
        rt.Tokenizer.from_file(write(tmp_path, bare | prefixed))


def test_what_the_reference_refuses_is_refused(shared: Path) -> None:
    path = shared / "tokenizers" / NOT_ONE / "tokenizer.json"
    with pytest.raises(rt.TokenizerError, match="`model` section"):
        rt.Tokenizer.from_file(path)


def test_what_lies_beside_the_sections_is_ignored(tmp_path: Path) -> None:
    """Among it stored limits, which must not cut or fill."""
    limits = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    plain = rt.Tokenizer.from_file(write(tmp_path, SMALL["small_gpt2"]))
    beside = SMALL["small_gpt2"] | {"truncation": limits, "extra": [1]}
    limited = rt.Tokenizer.from_file(write(tmp_path, beside))
    ids, _ = plain.encode_batch(["one two three four"])
    found, _ = limited.encode_batch(["one two three four"])
    assert len(ids) > 2
    assert found.tolist() == ids.tolist()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, a part missing or doubled."""
    changed = bytearray(data)
    at, end = sorted(rng.choices(range(len(data)), k=2))
    match rng.randint(0, 3):
        case 0:
            del changed[at:]
        case 1:
            del changed[at : min(end, at + 100)]
        case 2:
            changed[at:at] = changed[at : min(end, at + 100)]
        case _:
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randint(0, 7)
    return bytes(changed)


def kept_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Give a definition large enough to be kept, and the file that keeps it."""
    monkeypatch.setenv("FAM_ENGINE_CACHE", str(folder / "cache"))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(SMALL["small_llama2"]).replace("{", "{" + " " * (1 << 18), 1))
    rt.Tokenizer.from_file(path)
    [kept] = (folder / "cache").iterdir()
    return path, kept


def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = kept_apart(tmp_path, monkeypatch)
    whole = kept.read_bytes()
    expected = rt.Tokenizer.from_file(path).encode_batch(TEXTS)[0].tolist()
    for seed in range(200):
        kept.write_bytes(damaged(random.Random(seed), whole))
        assert rt.Tokenizer.from_file(path).encode_batch(TEXTS)[0].tolist() == expected
        assert kept.read_bytes() == whole


def test_a_forged_cache_is_no_way_to_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage with the right length and checksum: whatever comes of it, it is no panic."""
    path, kept = kept_apart(tmp_path, monkeypatch)
    whole = kept.read_bytes()
    outcomes = set()
    for seed in range(200):
        payload = damaged(random.Random(seed), whole[56:])
        prefix = whole[:40] + len(payload).to_bytes(8, "little")
        kept.write_bytes(prefix + checksum(payload).to_bytes(8, "little") + payload)
        ids, _ = rt.Tokenizer.from_file(path).encode_batch(TEXTS)
        outcomes.add((kept.read_bytes() == whole, len(ids)))
    assert {made_anew for made_anew, _ in outcomes} == {True, False}  # some forgeries do pass


def checksum(payload: bytes) -> int:
    """Give the checksum of `native/binary.rs`."""
    total = 0
    padded = payload + bytes(8 - len(payload) % 8)
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        total = (total ^ word) * 0x9E37_79B9_7F4A_7C15 % (1 << 64)
        total = (total << 29 | total >> 35) % (1 << 64)
    return total
