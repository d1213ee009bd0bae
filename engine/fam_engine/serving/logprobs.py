"""Log-probs as OpenAI's completions and vLLM's `prompt_logprobs` write them.

In: the ids and facts of some tokens, the most probable tokens in their places. Out: JSON values. The log-prob of a
token is the same number wherever it appears in its place: clients tell by equality whether it is the most probable one.
Those of other likely tokens are float32, and so is a token's that is read off the scores of its prompt: asked for in
another way, the same token's may differ from it by some 1e-6. Those of a written text are computed again from its ids,
in products of other shapes than its steps': in bf16 a greedy token that won by next to nothing may be second here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fam_engine.jobs.scoring.continuations import Continuation
from fam_engine.serving.protocol import RequestError
from fam_engine.serving.token_texts import TokenTexts


@dataclass(frozen=True)
class Row:
    """A token in its place.

    Attributes:
        token_id: The token.
        logprob: Its log-prob, nats; None: nothing stands before it.
        rank: Its rank, at most 100; 0 without a log-prob.
        top: The most probable tokens in this place and their log-probs, falling; the token itself
            may be among them.
    """

    token_id: int
    logprob: float | None = None
    rank: int = 0
    top: tuple[tuple[int, float], ...] = ()


def rows(token_ids: Sequence[int], score: Continuation) -> list[Row]:
    """Give a row a token.

    Args:
        token_ids: The first tokens of what was scored.
        score: Their facts.

    Raises:
        RequestError: The model gives one of them no finite log-prob.
    """
    count = len(token_ids)
    logprobs = score.facts.logprobs[:count].tolist()
    if not np.isfinite(logprobs).all():
        message = "the model gives no finite log-prob for these tokens"
        raise RequestError(message, status=500, code="nonfinite", kind="server_error")
    top = score.top.slice(0, count)
    if not len(top.token_ids):
        tops: list[tuple[tuple[int, float], ...]] = [()] * count
    else:
        tops = [
            tuple(zip(ids, values, strict=True))
            for ids, values in zip(top.token_ids.tolist(), top.logprobs.tolist(), strict=True)
        ]
    ranks = score.facts.ranks[:count].tolist()
    return [
        Row(token_id, logprob, rank, tuple((i, logprob if i == token_id else v) for i, v in one))
        for token_id, logprob, rank, one in zip(token_ids, logprobs, ranks, tops, strict=True)
    ]


def openai_logprobs(
    found: Sequence[Row], offsets: Sequence[int], count: int, names: TokenTexts
) -> dict[str, Any]:
    """Give the `logprobs` object of a choice.

    Args:
        found: Its tokens.
        offsets: Where each begins in its text.
        count: How many of the most probable tokens to name.
        names: Names of tokens.
    """
    return {
        "tokens": [names.name(row.token_id) for row in found],
        "token_logprobs": [row.logprob for row in found],
        "top_logprobs": [_named_top(row, count, names) for row in found],
        "text_offset": list(offsets),
    }


def _named_top(row: Row, count: int, names: TokenTexts) -> dict[str, float] | None:
    """Name the most probable tokens and the token itself; of two with one name the first counts."""
    if row.logprob is None:
        return None
    named: dict[str, float] = {}
    for token_id, logprob in (*row.top[:count], (row.token_id, row.logprob)):
        named.setdefault(names.name(token_id), logprob)
    return named


def prompt_logprobs(
    found: Sequence[Row], count: int, names: TokenTexts
) -> list[dict[str, dict[str, Any]] | None]:
    """Give vLLM's list: for each token of a prompt it and the most probable ones, by id, it first."""
    return [None if row.logprob is None else _by_id(row, count, names) for row in found]


def _by_id(row: Row, count: int, names: TokenTexts) -> dict[str, dict[str, Any]]:
    ranked = [(row.token_id, row.logprob, row.rank)]
    ranked += [(i, logprob, rank) for rank, (i, logprob) in enumerate(row.top[:count], start=1)]
    by_id: dict[str, dict[str, Any]] = {}
    for token_id, logprob, rank in ranked:
        entry = {"logprob": logprob, "rank": rank, "decoded_token": names.name(token_id)}
        by_id.setdefault(str(token_id), entry)
    return by_id
