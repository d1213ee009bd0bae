"""One text on its way: its ids so far, and whether it has ended.

In: chosen tokens and their log-probs, one at a time. Out: a `Completion`. What ends texts (`Ends`) is the model's own
end tokens and the user's stop strings; a stop string is looked for in the text, so it is found
however tokens cut it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fam_engine.data.tokenizer import TextEncoder
from fam_engine.model.config import ModelConfig
from fam_engine.model.generation.detokenizer import REPLACEMENT, Detokenizer, TextStream
from fam_engine.model.generation.requests import Completion, FinishReason


@dataclass(frozen=True)
class Ends:
    """What ends a model's texts, beside its length.

    Attributes:
        token_ids: Any of these ends a text.
        texts: What the template ends a turn with, where that is no special token.
    """

    token_ids: frozenset[int]
    texts: tuple[str, ...]


def find_ends(config: ModelConfig, encoder: TextEncoder) -> Ends:
    """Find what ends a model's texts: its end tokens, and what the template ends a turn with."""
    special = {token for _, token in encoder.tokenizer.special_tokens()}
    turn = encoder.end_of_turn_ids.tolist()
    token_ids = frozenset(config.eos_token_ids)
    if not turn:
        return Ends(token_ids, ())
    # Before the special token a template may put a blank or a line break, which not every model
    # writes.
    if turn[-1] in special or turn[-1] in token_ids:
        return Ends(token_ids | {turn[-1]}, ())
    return Ends(token_ids, (Detokenizer(encoder.tokenizer).text(turn),))


class StopStrings:
    """Finds the first of some strings in a growing text.

    Args:
        strings: What to look for.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        self._longest = max(map(len, strings), default=0)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._strings)

    def find(self, text: str, *, known: int = 0) -> int | None:
        """Give where the first one begins, or None.

        Args:
            text: The text.
            known: So many characters from the start have been searched before.
        """
        start = max(0, known - self._longest + 1)
        places = [text.find(string, start) for string in self._strings]
        return min((place for place in places if place >= 0), default=None)


class Sequence:
    """A text that grows in a slot of the cache.

    Args:
        request: Number of its request.
        sample: Number of the sample.
        seed: Of the request.
        limit: Most tokens it may have.
        ends: What ends it.
        stops: Strings that end it.
        detokenizer: Ids to text.
    """

    def __init__(
        self,
        *,
        request: int,
        sample: int,
        seed: int,
        limit: int,
        ends: Ends,
        stops: StopStrings,
        detokenizer: Detokenizer,
    ) -> None:
        self.request = request
        self.sample = sample
        self.seed = seed
        self.token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._end_token_id: int | None = None
        self._end_logprob: float | None = None
        self.limit = limit
        self._ends = ends
        self._stops = stops
        self._detokenizer = detokenizer
        self._stream = TextStream(detokenizer)
        self._text = ""

    def add(self, token_id: int, logprob: float) -> FinishReason | None:
        """Take the next token; give why the text has ended, if it has."""
        if token_id in self._ends.token_ids:
            self._end_token_id, self._end_logprob = token_id, logprob
            return "eos"
        self.token_ids.append(token_id)
        self._logprobs.append(logprob)
        if self._stops and self._has_stopped(token_id):
            return "stop"
        return "length" if len(self.token_ids) >= self.limit else None

    def _has_stopped(self, token_id: int) -> bool:
        known = len(self._text)
        self._text += self._stream.add(token_id)
        return self._stops.find(self._text, known=known) is not None

    def completion(self, reason: FinishReason) -> Completion:
        """Give the finished text."""
        text = self._detokenizer.text(self.token_ids)
        if reason == "length":
            text = text.rstrip(REPLACEMENT)
        kept = list(self.token_ids)
        # Once more over all of it: the last characters may not have been certain before.
        place = self._stops.find(text)
        if place is not None:
            reason, text = "stop", text[:place]
            self._end_token_id = self._end_logprob = None
            while kept and not text.startswith(self._detokenizer.text(kept)):
                kept.pop()
        return Completion(
            self.request,
            self.sample,
            np.array(kept, np.int32),
            text,
            reason,
            self._end_token_id,
            self._end_logprob,
            logprobs=np.array(self._logprobs[: len(kept)]),
        )
