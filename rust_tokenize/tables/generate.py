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
from tokenizers import Regex, pre_tokenizers

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
    any_class = "|".join([*PATTERNS, r"\p{M}"])
    rest = [c for c in SCALARS if c in SPARSE or c >= 0xF0000]
    _mark(flags, 0, rest, any_class)
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


def header(what: str, digest: str) -> str:
    """Start of a generated file."""
    return (
        f"//! {what}\n//!\n"
        f"//! Written by `tables/generate.py` from `tokenizers` {tokenizers.__version__}.\n\n"
        "use super::expand::expand;\n\n"
        "/// SHA-256 of the table's values at every scalar, in order.\n"
        f'pub const SHA256: &str = "{digest}";\n'
    )


def static_runs(name: str, doc: str, values: bytes, kind: str) -> str:
    """A `static` array in Rust, unrolled from runs when compiled."""
    coded = ", ".join(f"({length}, {value})" for length, value in runs(values))
    rows = _wrapped(coded)
    return (
        f"\n/// {doc}\npub static {name}: {kind} =\n    expand(&{name}_RUNS);\n\n"
        f"#[rustfmt::skip]\nconst {name}_RUNS: [(u16, u8); {len(runs(values))}] = [\n{rows}\n];\n"
    )


def _wrapped(text: str) -> str:
    """Breaks a list at commas into lines of at most 100 columns."""
    lines, line = [], "   "
    for item in text.split("), "):
        item = item.rstrip(")") + "),"
        if len(line) + 1 + len(item) > 100:
            lines.append(line)
            line = "   "
        line += " " + item
    return "\n".join([*lines, line])


def class_tables() -> str:
    """The text of `class_tables.rs`."""
    flags = class_flags()
    index, blocks = two_stage(flags)
    return (
        header("Classes of every Unicode scalar, a bit a class (`classes.rs`).", scalar_hash(flags))
        + static_runs("INDEX", "Block of each 256 code points.", index, f"[u8; {len(index)}]")
        + static_runs("BLOCKS", "The distinct blocks, one by one.", blocks, f"[u8; {len(blocks)}]")
    )


if __name__ == "__main__":
    (NATIVE / "class_tables.rs").write_text(class_tables())
