"""What to know before training on a selection: the same text twice, cut texts, questions of the test.

In: which records were chosen, and the columns. Out: a list of cautions, each with a count and some ids to look at.
They drop nothing: what to do about them is for the person who trains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fam_engine.measure.statistics import Ints

Bools = npt.NDArray[np.bool_]

_SHOWN_IDS = 10
# Sources of which so many answers are the same text are one source under two names.
_SAME_SOURCE = 0.5
_SHOWN_PAIRS = 10

_FLAGS = ("prompt_cut", "template_altered", "special_in_text", "duplicate_id")
MEANINGS = {
    "duplicate_text": "prompt and response are those of an earlier one",
    "in_test": "the test files ask the same question",
    "near_test": "the test files hold half of the question's text or more",
    "response_cut": "the response ends because its writer ran out of tokens",
    "prompt_cut": "the prompt was cut from the left to fit the model that scored",
    "template_altered": "the chat template does not keep the response as it stands",
    "special_in_text": "the text spells a special token",
    "duplicate_id": "another record has the same id",
}


@dataclass(frozen=True)
class Signs:
    """What cautions are found from, of n scored records.

    Attributes:
        text_digest: int64[n], of prompt and response.
        sources: int64[n], places in the list of their names.
        flags: list<string>[n] of the scores.
        response_cut: bool[n], the response ran into a limit of tokens.
        in_test: bool[n], the test files ask the same question.
        near_test: bool[n], the test files hold half of the question's text.
    """

    text_digest: Ints
    sources: Ints
    flags: pa.ChunkedArray
    response_cut: Bools
    in_test: Bools
    near_test: Bools


def find_cautions(
    chosen: Ints, ids: pa.Array, signs: Signs, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Look for what may spoil a training.

    Args:
        chosen: int64[k], the selected among n scored records.
        ids: string[n].
        signs: What to look at.
        names: Names of the sources.

    Returns:
        Dictionaries of `code`, `count` (selected records), `text`, and `ids`, some of them;
        `same_sources` (counted over all records) names pairs instead.
    """
    found = {
        "duplicate_text": chosen[_repeats(signs.text_digest[chosen])],
        "in_test": chosen[signs.in_test[chosen]],
        "near_test": chosen[signs.near_test[chosen]],
        "response_cut": chosen[signs.response_cut[chosen]],
        **_flagged(signs.flags, chosen),
    }
    cautions: list[dict[str, Any]] = [
        {
            "code": code,
            "count": len(rows),
            "text": MEANINGS[code],
            "ids": ids.take(pa.array(rows[:_SHOWN_IDS])).to_pylist(),
        }
        for code, rows in found.items()
        if len(rows)
    ]
    if pairs := _same_sources(signs.text_digest, signs.sources, names):
        text = "most of their answers are the same text, so a choice between them says nothing"
        cautions.append({"code": "same_sources", "count": len(pairs), "text": text, "pairs": pairs})
    return cautions


def _repeats(hashes: Ints) -> Bools:
    """Mark every text but the first of its kind."""
    repeated = np.ones(len(hashes), np.bool_)
    repeated[np.unique(hashes, return_index=True)[1]] = False
    return repeated


def _flagged(flags: pa.ChunkedArray, chosen: Ints) -> dict[str, Ints]:
    """Give the chosen records of each flag that matters here."""
    lists = flags.take(pa.array(chosen)).combine_chunks()
    parents = pc.list_parent_indices(lists).to_numpy()
    values = np.array(pc.list_flatten(lists).to_pylist(), object)
    return {flag: np.unique(chosen[parents[values == flag]]) for flag in _FLAGS}


def _same_sources(hashes: Ints, sources: Ints, names: Sequence[str]) -> list[dict[str, Any]]:
    """Find pairs of sources most of whose texts are equal."""
    shared: Counter[tuple[int, int]] = Counter()
    order = np.lexsort((sources, hashes))
    ordered = hashes[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    ends = np.append(starts[1:], len(ordered))
    several = np.flatnonzero(ends - starts > 1)
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        of_text = np.unique(sources[order[start:end]]).tolist()
        # A text that hundreds of sources share is a fixed phrase and says nothing about two of them.
        if len(of_text) <= 64:
            shared.update(combinations(of_text, 2))
    sizes = np.bincount(sources, minlength=len(names))
    pairs = [
        {"sources": [names[a], names[b]], "num_shared": count}
        for (a, b), count in shared.most_common()
        if count >= _SAME_SOURCE * min(sizes[a], sizes[b])
    ]
    return pairs[:_SHOWN_PAIRS]
