# ruff: noqa: INP001 -- a script, not a package
"""Writes the tables of the native tokenizer by asking the reference about every Unicode scalar.

    python rust_tokenize/tables/generate.py

The reference is the installed PyPI package `tokenizers`, whose ids are the ones that count. Its
regular expressions run in Oniguruma, its `Digits` on the standard library of the Rust that built
it, and its NFC on tables of its own: three editions of Unicode, none of them Python's. So nothing
is taken from `unicodedata`; each property is read off what the reference does to a text.

Tables are written as runs, `(length, value)`, which `native/expand.rs` unrolls when compiled.
A test compares the hash in each file with the table, another with the installed reference.
"""

from __future__ import annotations

import hashlib
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NATIVE = Path(__file__).parents[1] / "src" / "native"
BLOCK = 256

# Planes 4 to 13 and the private ones: no class has a member there, which one pattern can ask.
SCALARS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
SPARSE = range(0x40000, 0xE0000)

# Bit of each class in `class_tables.rs`; what a bit means stands in `classes.rs`.
PATTERNS = [
    r"\p{L}",
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
    r"\p{N}",
    r"\s",
    r"[\p{P}\p{S}]",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]",
]
NUMERIC_BIT = len(PATTERNS)


def class_flags() -> bytes:
    """The classes of every code point as the reference sees them, a bit a class; surrogates 0."""
    flags = bytearray(0x110000)
    dense = [c for c in SCALARS if c not in SPARSE and c < 0xF0000]
    for bit, pattern in enumerate(PATTERNS):
        _mark(flags, bit, dense, pattern)
    rest = [c for c in SCALARS if c in SPARSE or c >= 0xF0000]
    _mark(flags, 0, rest, "|".join(PATTERNS))
    assert not any(flags[c] for c in rest), "a class has members in a sparse plane"
    for code in _numeric():
        flags[code] |= 1 << NUMERIC_BIT
    return bytes(flags)


def _mark(flags: bytearray, bit: int, codes: Sequence[int], pattern: str) -> None:
    """Sets `bit` for those of `codes` that `pattern` matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    matched = bytearray(b"\1" * len(codes))
    for _, (start, end) in split.pre_tokenize_str("".join(map(chr, codes))):
        matched[start:end] = bytes(end - start)
    for code, is_member in zip(codes, matched, strict=True):
        flags[code] |= is_member << bit


def _numeric() -> list[int]:
    """What `Digits` calls a digit: it cuts before and behind it, here between two letters."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    text = "a".join(map(chr, SCALARS))
    pieces = digits.pre_tokenize_str(text)
    return [ord(piece) for piece, _ in pieces if len(piece) == 1 and piece != "a"]


# Bits of a property in `nfc_tables.rs`; below them is the rank of the combining class.
MAY_COMPOSE, CHANGES = 0x40, 0x80
HANGUL = range(0xAC00, 0xAC00 + 11_172)


class Nfc:
    """What the reference's NFD and NFC say, told by trying them."""

    def __init__(self) -> None:
        nfd = dict(zip(SCALARS, _normalized(normalizers.NFD(), map(chr, SCALARS)), strict=True))
        nfc = dict(zip(SCALARS, _normalized(normalizers.NFC(), map(chr, SCALARS)), strict=True))
        for code in HANGUL:
            assert nfd[code] == _hangul(code), "Hangul is not what arithmetic makes it"
        self.decompositions = {
            code: parts for code, parts in nfd.items() if parts != chr(code) and code not in HANGUL
        }
        self.compositions = self._compositions()
        self.ranks = _ranks()
        self.properties = self._properties(nfd, nfc)

    def _compositions(self) -> dict[tuple[str, str], str]:
        """The pairs that compose: a composite's last part with what the others compose to."""
        long = {code: parts for code, parts in self.decompositions.items() if len(parts) > 1}
        firsts = _normalized(normalizers.NFC(), (parts[:-1] for parts in long.values()))
        pairs = [(first, parts[-1]) for first, parts in zip(firsts, long.values(), strict=True)]
        composed = _normalized(normalizers.NFC(), (first + last for first, last in pairs))
        triples = zip(pairs, composed, long, strict=True)
        return {pair: found for pair, found, code in triples if found == chr(code)}

    def _properties(self, nfd: dict[int, str], nfc: dict[int, str]) -> bytes:
        properties = bytearray(0x110000)
        seconds = {second for _, second in self.compositions}
        # vowels and final consonants of Hangul
        seconds |= set(map(chr, [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]))
        for code in SCALARS:
            first = nfd[code][0]
            properties[code] = self.ranks.get(first, 0) | (first in seconds) * MAY_COMPOSE
            if nfc[code] != chr(code):
                properties[code] = CHANGES
        return bytes(properties)

    def hash(self) -> str:
        """SHA-256 of the properties of every scalar and of all pairs, in order."""
        return hashlib.sha256(
            self.properties[:0xD800]
            + self.properties[0xE000:]
            + "".join(chr(code) + parts for code, parts in self.decompositions.items()).encode()
            + "".join(a + b + c for (a, b), c in sorted(self.compositions.items())).encode()
        ).hexdigest()


def _normalized(normalizer: normalizers.Normalizer, texts: Iterable[str]) -> list[str]:
    """Normalizes many texts at once, parted by a letter and a digit that nothing composes with."""
    return normalizer.normalize_str("q0".join(texts)).split("q0")


def _hangul(code: int) -> str:
    """The letters of a Hangul syllable (Unicode 16, section 3.12)."""
    lead, rest = divmod(code - HANGUL.start, 588)
    vowel, tail = divmod(rest, 28)
    letters = chr(0x1100 + lead) + chr(0x1161 + vowel)
    return letters + chr(0x11A7 + tail) if tail else letters


def _ranks() -> dict[str, int]:
    """The rank of each combining class: NFD swaps two marks where the first has the higher one."""
    scalars = list(map(chr, SCALARS))
    behind_highest = _swapped(("\u0345", mark) for mark in scalars)
    before_lowest = _swapped((mark, "\u0334") for mark in scalars)
    swaps = zip(scalars, behind_highest, before_lowest, strict=True)
    marks = ["\u0334", "\u0345", *(mark for mark, behind, before in swaps if behind or before)]
    marks = sorted(set(marks))
    swapped = _swapped((first, second) for first in marks for second in marks)
    lower = [sum(swapped[i : i + len(marks)]) for i in range(0, len(swapped), len(marks))]
    ranks = {count: rank for rank, count in enumerate(sorted(set(lower)), start=1)}
    return {mark: ranks[count] for mark, count in zip(marks, lower, strict=True)}


def _swapped(pairs: Iterable[tuple[str, str]]) -> list[bool]:
    """Whether NFD swaps the two characters of each pair."""
    pairs = list(pairs)
    found = _normalized(normalizers.NFD(), (first + second for first, second in pairs))
    return [a != b and text == b + a for (a, b), text in zip(pairs, found, strict=True)]


def scalar_hash(table: bytes) -> str:
    """SHA-256 of a table's bytes at every scalar, in order."""
    return hashlib.sha256(table[:0xD800] + table[0xE000:]).hexdigest()


def two_stage(table: bytes) -> tuple[bytes, bytes]:
    """Splits a table into the number of each block of 256, and the distinct blocks one by one."""
    numbers: dict[bytes, int] = {}
    index = bytearray()
    for start in range(0, len(table), BLOCK):
        index.append(numbers.setdefault(table[start : start + BLOCK], len(numbers)))
    return bytes(index), b"".join(numbers)


def runs(values: Iterable[int]) -> list[tuple[int, int]]:
    """Run-length code: `(length, value)`."""
    return [(len(list(run)), value) for value, run in groupby(values)]


def header(what: str, hashed: str, digest: str) -> str:
    """Start of a generated file."""
    return (
        f"//! {what}\n//!\n"
        f"//! Written by `tables/generate.py` from `tokenizers` {tokenizers.__version__}.\n\n"
        "use super::expand::expand;\n\n"
        f"/// {hashed}\n"
        f'pub const SHA256: &str = "{digest}";\n'
    )


def static_runs(name: str, doc: str, values: bytes) -> str:
    """An array of bytes, unrolled from runs when compiled."""
    coded = runs(values)
    rows = wrapped(f"({length}, {value})" for length, value in coded)
    return (
        f"\n/// {doc}\npub static {name}: [u8; {len(values)}] = expand(&{name}_RUNS);\n\n"
        f"#[rustfmt::skip]\nconst {name}_RUNS: [(u16, u8); {len(coded)}] = [\n{rows}\n];\n"
    )


def static_list(name: str, doc: str, kind: str, items: Sequence[str]) -> str:
    """An array of tuples."""
    rows = wrapped(items)
    return (
        f"\n/// {doc}\n#[rustfmt::skip]\n"
        f"pub static {name}: [{kind}; {len(items)}] = [\n{rows}\n];\n"
    )


def wrapped(items: Iterable[str]) -> str:
    """The items with commas, in lines of at most 100 columns."""
    lines = [" " * 3]
    for item in items:
        if len(lines[-1]) + len(item) > 98:
            lines.append(" " * 3)
        lines[-1] += f" {item},"
    return "\n".join(lines)


def escaped(text: str) -> str:
    """The characters as Rust writes them in literals."""
    return "".join(c if c.isascii() and c.isprintable() else f"\\u{{{ord(c):x}}}" for c in text)


def class_tables() -> str:
    """The text of `class_tables.rs`."""
    flags = class_flags()
    index, blocks = two_stage(flags)
    return (
        header(
            "Classes of every Unicode scalar, a bit a class (`classes.rs`).",
            "SHA-256 of the classes of every scalar, in order.",
            scalar_hash(flags),
        )
        + static_runs("INDEX", "Block of each 256 code points.", index)
        + static_runs("BLOCKS", "The distinct blocks, one by one.", blocks)
    )


def nfc_tables() -> str:
    """The text of `nfc_tables.rs`."""
    nfc = Nfc()
    index, blocks = two_stage(nfc.properties)
    decompositions = [
        f"('{escaped(chr(code))}', \"{escaped(parts)}\")"
        for code, parts in nfc.decompositions.items()
    ]
    compositions = [
        f"('{escaped(a)}', '{escaped(b)}', '{escaped(c)}')"
        for (a, b), c in sorted(nfc.compositions.items())
    ]
    return (
        header(
            "What NFC needs to know of every Unicode scalar (`nfc.rs`).",
            "SHA-256 of the properties of every scalar, the decompositions and the compositions.",
            nfc.hash(),
        )
        + static_runs("INDEX", "Block of each 256 code points.", index)
        + static_runs("BLOCKS", "The distinct blocks of properties, one by one.", blocks)
        + static_list(
            "DECOMPOSITIONS",
            "Characters and what they decompose to in full, but for Hangul.",
            "(char, &str)",
            decompositions,
        )
        + static_list(
            "COMPOSITIONS",
            "Pairs of characters and what they compose to, but for Hangul.",
            "(char, char, char)",
            compositions,
        )
    )


if __name__ == "__main__":
    (NATIVE / "class_tables.rs").write_text(class_tables())
    (NATIVE / "nfc_tables.rs").write_text(nfc_tables())
