"""Random texts that break tokenizers, a function for each way known to break one.

In: a seeded `random.Random` and the `Material` of a tokenizer. Out: a text of a few to some hundred characters. Each
docstring says why the generator is there; `GENERATORS` lists them all. Characters come from fixed lists rather than
from `unicodedata`, whose tables change with the Python version; only `any_scalar` reaches every scalar.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Material:
    """What the texts of one tokenizer are made of."""

    entries: list[str]  # texts of vocabulary entries, those no merge makes included
    specials: list[str]  # contents of added tokens


Generator = Callable[[random.Random, Material], str]
GENERATORS: list[Generator] = []


def generator(function: Generator) -> Generator:
    """Put a function into `GENERATORS`."""
    GENERATORS.append(function)
    return function


# The 25 characters of \s, then those often taken for blanks: U+200B, U+FEFF, U+180E, U+2060.
BLANKS = [
    *"\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000",
    *map(chr, range(0x2000, 0x200B)),
]
NO_BLANKS = [*"\u200b\ufeff\u180e\u2060\x1c\x1d\x1e\x1f\x00"]
LATIN = [*"aAbBeEnNsStTzZ"]
WORDS = ["the", "Hello", "don", "X", "\u00e9t\u00e9", "naive", "HTTPServer", "iPhone", "of", "is"]
# Lu, Lt, Lm, Lo, Ll, Mn: what the o200k classes tell apart.
CASES = [*"aZ\u01c5\u1f88\u02b0\u30fc\u00aa\u4e2d\u05d0\u00df\u0131\u0130\u0345\u0301\u0903\u20dd"]
PUNCTUATION = [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u2014\u00ab\u3002\u00a3\u20ac\u00b7\u2019"]
# Combining classes 230, 220, 202, 216, 1, 9, 7, 33, 240, 8, 0 (a spacing mark), 0 (an enclosing mark).
MARKS = [
    *"\u0301\u0308\u0323\u0327\u031b\u0338\u094d\u093c\u05b4\u0345\u3099\u0903\u20dd\u0307\u0304"
]
# Bases that compose, singletons, exclusions, what decomposes twice, Hangul L V T, other scripts' compositions.
BASES = [
    *"aeioucCDsSA\u00c5\u212b\u2126\u1e69\u1ea5\u00ea\u0958\u0915\u09c7\u0b47\u0bc6\u1100\u1112",
    *"\u1161\u1175\u11a8\u11c2\uac00\uac01\ud788\u304b\u30cf\u3046\u1025\u0dd9\u2adc\u0344\u0374\u037e",
    *"\U0001d15e\U0001d157\U0001d165\uf900\ufb1d\u0f43\U00016d67\U00011099\U000110ba\u2260=<",
]
CJK = [
    *"\u4e00\u9fa5\u9fa6\u3400\u4eca\u65e5\u3040\u3041\u309f\u30a0\u30ff\u3105\uac00\ud7a3\u3400"
]
CJK += [*"\u3001\u3002\uff0c\uff01\u30fb\u3005\u3007\uff21\uff41\uff11\uff66\U00020000\U0002a6df"]
EMOJI = [
    *"\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467\ufe0f\u2764\U0001f3fd\U0001f1e9\U0001f1ea"
]
# Nd of many scripts, Nl, No.
DIGITS = [
    *"0123456789\u0660\u0669\u06f3\u0967\u09ea\u0e53\uff15\U0001d7d8\U0001fbf0\u2160\u2188\u00b2"
]
DIGITS += [*"\u00bd\u2460\u3021\u4e00\u0bf0\u1369\U00010107\u3007\u0f33"]
ODD = [
    *"\x00\x01\x08\x1b\x7f\x80\x9f\xad\ufffd\ufffe\uffff\ufdd0\U0001fffe\U0010ffff\ue000\u2581\u0120"
]
ODD += ["\u010a", "<0x0A>", "<0xFF>", "<0x", "<unk>", "\u200e", "\u202e", "\ud7ff", "\uffff"]
CONTRACTED = ["s", "t", "re", "ve", "m", "ll", "d", "\u017f", "r", "v", "l", "x", "st", "\ufb06"]
# One text for each alternative of each pattern: cut anywhere, it leaves the alternative half done.
ALTERNATIVES = [
    "'re we've they'LL I'D",
    " word",
    "-word's",
    " 1234567",
    " ...\r\n\r\n",
    "   \r\n  \n x",
    "\t\t  x",
    " !?/\n//",
    "HTTPServer'll",
    "\u4e16\u754c 123 \u3042x",
    "!abc.DEF",
    "\u00a0\u00a0a",
    "e\u0301\u0323x",
]
SCRIPTS = [(0x20, 0x7F), (0x80, 0x24F), (0x250, 0x52F), (0x590, 0x7FF), (0x900, 0xDFF)]
SCRIPTS += [(0xE00, 0x11FF), (0x1200, 0x1FFF), (0x2000, 0x2BFF), (0x2E80, 0x33FF)]
SCRIPTS += [(0x4E00, 0x4EFF), (0xA000, 0xABFF), (0xAC00, 0xAD00), (0xF900, 0xFFFF)]
SCRIPTS += [(0x10000, 0x10FFF), (0x11000, 0x1FAFF), (0x20000, 0x20100), (0xE0000, 0xE01EF)]


def some(rng: random.Random, choices: list[str], most: int) -> str:
    """Join 1 to `most` random choices."""
    return "".join(rng.choices(choices, k=rng.randint(1, most)))


def scalar(rng: random.Random, low: int = 0, high: int = 0x10FFFF) -> str:
    """Draw a Unicode scalar; a surrogate becomes U+D7FF."""
    code = rng.randint(low, high)
    return chr(0xD7FF if 0xD800 <= code < 0xE000 else code)


@generator
def vocabulary(rng: random.Random, material: Material) -> str:
    """Entries side by side: pretokens that are an entry no merge makes, merges across entries."""
    return some(rng, material.entries, 6)


@generator
def split_entries(rng: random.Random, material: Material) -> str:
    """Entries cut and glued at odd places: almost-entries and ties between merges."""
    parts = rng.choices(material.entries, k=3)
    return "".join(part[rng.randint(0, 1) : len(part) - rng.randint(0, 1)] for part in parts)


@generator
def blank_lattice(rng: random.Random, material: Material) -> str:
    r"""Blanks and newlines in every order: `\s+(?!\S)`, `\s*[\r\n]+` and what is no \s at all."""
    letters = rng.choices([*BLANKS, " ", " ", "\n", "\r\n", "\t", *NO_BLANKS], k=rng.randint(1, 12))
    for _ in range(rng.randint(0, 3)):
        letters.insert(rng.randint(0, len(letters)), rng.choice([*LATIN, "1", "!", "\u4e2d", "'s"]))
    return "".join(letters)


@generator
def contractions(rng: random.Random, material: Material) -> str:
    """Apostrophe x ending x case x U+017F, which folds to s; the typographic apostrophe does not count."""
    parts = []
    for _ in range(rng.randint(1, 4)):
        ending = "".join(rng.choice([c, c.upper()]) for c in rng.choice(CONTRACTED))
        before = rng.choice(["", *LATIN, " ", "1", ".", "\n", "''", "\u00e9", "\u0301", "\u3042"])
        parts += [before, rng.choice(["'", "'", "'", "''", "\u2019"]), ending]
    return "".join(parts) + rng.choice(["", "x", " ", "'", "1", "\u0301"])


@generator
def marks(rng: random.Random, material: Material) -> str:
    """Bases and marks around the places where NFC composes, reorders or must not."""
    return some(rng, [*BASES, *MARKS, *MARKS, " ", "x", "\u200d"], 10)


@generator
def long_mark_runs(rng: random.Random, material: Material) -> str:
    """Runs of marks longer than a small sort buffer, in classes out of order."""
    run = rng.choices(MARKS, k=rng.randint(15, 70))
    return rng.choice([*BASES, ""]) + "".join(run) + rng.choice([*BASES, ""])


@generator
def jamo(rng: random.Random, material: Material) -> str:
    """Hangul by arithmetic: L+V, LV+T, LVT+T, and the jamo just outside the ranges."""
    return some(
        rng, [*"\u1100\u1112\u1113\u1161\u1175\u1176\u11a7\u11a8\u11c2\u11c3\uac00\uac01\ud7a3"], 9
    )


@generator
def east_asian(rng: random.Random, material: Material) -> str:
    """CJK, Kana and Hangul beside digits and Latin: DeepSeek's second split and its borders."""
    return some(rng, [*CJK, *CJK, *LATIN, *DIGITS[:10], " ", "\n", *PUNCTUATION[:4]], 12)


@generator
def emoji(rng: random.Random, material: Material) -> str:
    """Joined emoji: symbols, marks (U+FE0F) and format characters (U+200D) alternate."""
    return some(rng, [*EMOJI, *EMOJI, " ", "a", "1", "\u20e3", "#"], 12)


@generator
def digits(rng: random.Random, material: Material) -> str:
    r"""Digits of all scripts in runs: groups of three, single, and \p{N} that is no decimal digit."""
    return some(rng, [*DIGITS, *DIGITS[:10], " ", ".", ",", "-", "a", "\u0301"], 14)


@generator
def specials(rng: random.Random, material: Material) -> str:
    """Added tokens whole, cut by one character, overlapping, beside blanks and words."""
    parts = []
    for _ in range(rng.randint(1, 5)):
        token = rng.choice(material.specials)
        cuts = [token, token, token[:-1], token[1:], token[:-1] + token, token.upper()]
        cuts.append(unicodedata.normalize("NFD", token))
        parts.append(rng.choice(cuts))
        parts.append(
            rng.choice(["", "", " ", "  ", "\n", " \n ", "a", "word", "\u0301", "\u00a0", "_"])
        )
    return "".join(parts)


@generator
def half_alternatives(rng: random.Random, material: Material) -> str:
    """Every prefix of a text that exercises an alternative, then something unexpected."""
    parts = []
    for _ in range(rng.randint(1, 3)):
        text = rng.choice(ALTERNATIVES)
        parts.append(text[: rng.randint(1, len(text))])
    return "".join(parts) + rng.choice(["", "", *PUNCTUATION, *BLANKS, *DIGITS, *MARKS, "x"])


@generator
def odd_characters(rng: random.Random, material: Material) -> str:
    """Controls, U+FEFF, NUL, non-characters, the blank's stand-in, names of byte tokens."""
    return some(rng, [*ODD, *ODD, *LATIN, " ", "\n"], 10)


@generator
def runs(rng: random.Random, material: Material) -> str:
    """Equal characters across the borders of cache keys, merge queues and registers."""
    border = rng.choice(
        [1, 2, 7, 8, 15, 16, 23, 24, 31, 32, 33, 47, 48, 63, 64, 127, 128, 255, 256]
    )
    character = rng.choice(
        [*LATIN, *BLANKS[:8], *DIGITS[:3], *PUNCTUATION[:6], *CJK[:4], *MARKS[:2]]
    )
    return (
        some(rng, ["", "x", " ", "\n"], 1)
        + character * (border + rng.randint(-1, 1))
        + rng.choice(["", "y", " "])
    )


@generator
def cased_words(rng: random.Random, material: Material) -> str:
    """Upper, title, modifier, other and lower letters with marks: o200k's two overlapping classes."""
    return some(rng, [*CASES, *CASES, *LATIN, "'s", "'LL", " ", "-"], 10)


@generator
def code(rng: random.Random, material: Material) -> str:
    """Punctuation, newlines and indentation as source code has them."""
    return some(
        rng, [*PUNCTUATION, *PUNCTUATION, "\n", "\r\n", "    ", "\t", " ", "if", "x1", "/"], 14
    )


@generator
def words(rng: random.Random, material: Material) -> str:
    """Plain words, blanks, punctuation: nothing odd, so that common paths are compared too."""
    return some(rng, [*WORDS, *(" " + word for word in WORDS), " ", ", ", ". ", "\n", "42"], 14)


@generator
def any_scalar(rng: random.Random, material: Material) -> str:
    """Any scalar at all, most of the time from one script."""
    low, high = rng.choice([*SCRIPTS, (0, 0x10FFFF)])
    return "".join(scalar(rng, low, high) for _ in range(rng.randint(1, 8)))


@generator
def mixture(rng: random.Random, material: Material) -> str:
    """Two or three of the others in a row: their borders."""
    chosen = rng.choices(GENERATORS[:-1], k=rng.randint(2, 3))
    return "".join(each(rng, material) for each in chosen)


def texts(seed: int, material: Material, count: int) -> list[str]:
    """Give `count` texts, the same for the same arguments."""
    rng = random.Random(seed)
    return [rng.choice(GENERATORS)(rng, material) for _ in range(count)]
