"""Whether questions of a test set are among those of a training set.

In: the texts of both. Out: which test questions are there again, whole or in large part. Texts are compared as words:
Unicode NFKC, case folded, punctuation left out. A text is *the same* as another if all words agree; it is *similar* to
a set if at least 60 % of its runs of 13 words occur in it. 13 words is the length of GPT-3's contamination study
(arXiv 2005.14165, appendix C). A share, because a few common runs are a task's stock phrases; 60 %, because one
changed word costs 13 runs, so that one in the middle of a question of 45 words leaves about 60 %. The same exercise
with other numbers is another question and passes if short (GSM8K has one whose share is 54 %). A text of fewer than 13
words can only be the same.

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
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Overlap:
    """Test questions that are in the training set.

    Args:
        num_test: Test questions looked at.
        same: Places (from 0) of those that are there word for word.
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
        words = normalised_words(text)
        if not words:
            continue
        if _are_in(known_wholes, np.array([_hash(words)], np.uint64)).all():
            same.append(place)
        elif _shared_share(known_runs, run_fingerprints(words)) >= SIMILAR_SHARE:
            similar.append(place)
    return Overlap(num_test, tuple(same), tuple(similar))


def normalised_words(text: str) -> list[str]:
    """Split a text into its words, spelling and punctuation aside; numbers are words."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


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
        words = normalised_words(text)
        if words:
            wholes.append(_hash(words))
            runs.append(run_fingerprints(words))
    return np.unique(np.array(wholes, np.uint64)), np.unique(np.concatenate(runs))


def _are_in(known: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    if len(known) == 0:
        return np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[places] == wanted
    return found


def _shared_share(known: npt.NDArray[np.uint64], runs: npt.NDArray[np.uint64]) -> float:
    return float(_are_in(known, runs).mean()) if len(runs) else 0.0
