r"""Whether questions of a test set are among those of a training set.

In: the texts of both. Out: which test questions are there again, whole or in large part. Texts are compared as words:
Unicode NFKC, case folded, punctuation left out; where words have no spaces between them, each letter is one. A text is
*the same* as another if all words and signs agree, for `7 - 5` does not ask what `7 + 5` does. Signs are all symbols,
and of the punctuation what carries meaning: brackets, `x_1`, `n!`, `3.5`, a hyphen outside words. So a question in
another notation (`1/2`, `\frac{1}{2}`) is not the same, the price of never taking one for another.

A text is *similar* to a set if at least 60 % of its runs of 13 words, signs aside, occur in it. 13 words is the length
of GPT-3's contamination study (arXiv 2005.14165, appendix C). A share, because a few common runs are a task's stock
phrases; 60 %, because one changed word costs 13 runs, so that one in the middle of a question of 45 words leaves about
60 %. The same exercise with other numbers is another question and passes if short (GSM8K has one whose share is 54 %).
A text of fewer than 13 words can only be the same.

Fingerprints are 64-bit hashes in sorted numpy arrays, 8 bytes a run: 0.4 GB for a million questions of 60 words.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RUN_WORDS = 13
SIMILAR_SHARE = 0.6
# `\w` has no combining marks, without which Hindi loses its vowels.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
# Letters of Thai and Lao, Burmese, Khmer, Japanese and Chinese, which put no spaces between words.
_SPACELESS = (
    r"\u0e01-\u0e4f\u0e81-\u0ecf\u1000-\u103f\u1050-\u108f\u1780-\u17df\u3041-\u30ff\u3400-\u9fff"
)
_WORD_PATTERN = (
    rf"[^\W_{_SPACELESS}]+(?:[{_MARKS}]+[^\W_{_SPACELESS}]*)*|[{_SPACELESS}](?<=\w)[{_MARKS}]*"
)
_WORD = re.compile(_WORD_PATTERN)
# Each alternative begins with the sign itself, what must stand before it comes after: twice as fast.
_WORD_OR_SIGN = re.compile(
    rf"""
    {_WORD_PATTERN}
    | [^\w\s()\[\].,:;!?'"`$\\]
    | [()\[\]](?<!\\.)                     # in TeX, \( and \[ are what $ is
    | \.(?<!\.\.)(?=\d) | :(?<=\d:)(?=\d)  # 3.5 and 3:4
    | _(?<=[^\W_]_)(?=[^\W_]|{{)           # x_1, not a gap to fill in
    | !(?==) | '(?='*\()                   # != and f'(x)
    """,
    re.VERBOSE,
)
_HYPHEN = re.compile(r"-(?<=[^\W\d_]{2}-)(?=[^\W\d_]{2})")
_BRACED = re.compile(r"\{(?<=[\^_]\{)(\w+)\}")  # x^{2} is x^2
_FACTORIAL = re.compile(r"(\)|(?<![^\W_])(?:\d+|[^\W\d_]))!(?!=)")  # not `What!`
# NFKC would make 102 of 10², and 31/2 of 3½.
_RAISED = re.compile("[²³¹⁰-ⁿ]+")
_BESIDE = re.compile(r"(?<=\d)[₀-₉¼-¾⅐-⅞]")
# Minus, en dash and hyphen; both slashes of fractions; dot operator, prime and apostrophe.
_SPELLINGS = str.maketrans("\u2212\u2013\u2010\u2044\u2215\u00b7\u2032\u2019", "---//\u22c5''")


@dataclass(frozen=True)
class Overlap:
    """Test questions that are in the training set.

    Args:
        num_test: Test questions looked at.
        same: Places (from 0) of those that are there word for word, sign for sign.
        similar: Places of those that are there in large part only.
    """

    num_test: int
    same: tuple[int, ...]
    similar: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of test questions that should not be evaluated on."""
        return len(self.same) + len(self.similar)


def find_overlap(train: Iterable[str], test: Iterable[str]) -> Overlap:
    """Find the test questions that occur in the training questions.

    Args:
        train: Training questions, read once.
        test: Test questions, read once. Texts without a word overlap with nothing.
    """
    known_wholes, known_runs = _fingerprints_of_all(train)
    same, similar, num_test = [], [], 0
    for place, text in enumerate(test):
        num_test += 1
        whole = words_and_signs(text)
        if not whole:
            continue
        if _are_in(known_wholes, np.array([_hash(whole)], np.uint64)).all():
            same.append(place)
        elif _shared_share(known_runs, run_fingerprints(normalised_words(text))) >= SIMILAR_SHARE:
            similar.append(place)
    return Overlap(num_test, tuple(same), tuple(similar))


def normalised_words(text: str) -> list[str]:
    """Split a text into its words, spelling, punctuation and signs aside; numbers are words."""
    return _WORD.findall(_normalised(text))


def words_and_signs(text: str) -> list[str]:
    """Split a text into its words and signs: two texts of equal ones ask the same."""
    plain = _BRACED.sub(r"\1 ", _HYPHEN.sub(" ", _normalised(text)))
    if "!" in plain:
        plain = _FACTORIAL.sub(r"\1 factorial ", plain)
    found = _WORD_OR_SIGN.findall(plain)
    if text.isascii():
        return found
    return [one for one in found if one.isascii() or unicodedata.category(one[0])[0] not in "PC"]


def _normalised(text: str) -> str:
    if text.isascii():
        return text.lower()
    text = _BESIDE.sub(r" \g<0>", _RAISED.sub(r"^\g<0>", text))
    return unicodedata.normalize("NFKC", text).casefold().translate(_SPELLINGS)


def run_fingerprints(words: list[str]) -> npt.NDArray[np.uint64]:
    """Give the fingerprint of every run of 13 words; none for fewer words."""
    starts = range(len(words) - RUN_WORDS + 1)
    return np.array([_hash(words[start : start + RUN_WORDS]) for start in starts], np.uint64)


def _hash(words: list[str]) -> int:
    # Python's own hash differs from run to run.
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _fingerprints_of_all(
    texts: Iterable[str],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Collect the sorted fingerprints of whole texts and of their runs."""
    wholes: list[int] = []
    runs = [np.empty(0, np.uint64)]
    for text in texts:
        whole = words_and_signs(text)
        if whole:
            wholes.append(_hash(whole))
            runs.append(run_fingerprints(normalised_words(text)))
    return np.unique(np.array(wholes, np.uint64)), np.unique(np.concatenate(runs))


def _are_in(known: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    if len(known) == 0:
        return np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[places] == wanted
    return found


def _shared_share(known: npt.NDArray[np.uint64], runs: npt.NDArray[np.uint64]) -> float:
    return float(_are_in(known, runs).mean()) if len(runs) else 0.0
