"""What is asked of a generator, and what it gives back.

In: nothing. Out: the types `Sampling`, `Request`, `Completion`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fam_engine.arguments import (
    check_whole_number,
    checked_token_ids,
    is_number,
    is_whole_number,
)
from fam_engine.data.packing import Int32
from fam_engine.errors import UsageError

# `nonfinite`: the model gave no finite numbers to choose from; the completion is what came before.
FinishReason = Literal["eos", "stop", "length", "nonfinite"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when a text ends.

    Attributes:
        max_new_tokens: Longest completion, tokens.
        temperature: Divides the logits; 0: always the most probable token (greedy).
        top_p: Only the most probable tokens that together have this probability (Holtzman et al.
            2020, arXiv 1904.09751); 1: all.
        top_k: Only so many of the most probable tokens, before `top_p`; 0: all.
        stop: Strings that end a text; they are not part of it. One alone, or a list, becomes a tuple.

    Raises:
        UsageError: A value out of range, or of another type.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values; stop strings become a tuple."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", tuple(stop) if isinstance(stop, list) else stop)
        for problem in self._problems():
            raise UsageError(f"sampling has {problem}", code="E_SAMPLING")

    def _problems(self) -> Iterator[str]:
        if not is_whole_number(self.max_new_tokens, least=1):
            yield f"max_new_tokens {self.max_new_tokens!r}, expected a whole number of at least 1"
        temperature = self.temperature
        if not is_number(temperature) or not (temperature == 0 or 0.001 <= temperature <= 100):
            yield f"temperature {temperature!r}, expected 0, or 0.001 to 100"
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            yield f"top_p {self.top_p!r}, expected more than 0, at most 1"
        if not is_whole_number(self.top_k, least=0):
            yield f"top_k {self.top_k!r}, expected a whole number of at least 0"
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) for text in self.stop):
            yield f"stop {self.stop!r}, expected texts"
        elif "" in self.stop:
            yield "an empty stop string"


@dataclass(frozen=True, eq=False)
class Request:
    """A context to be continued.

    Attributes:
        context_ids: int32, at least one; a list of whole numbers becomes it.
        seed: Of this record alone: with the sample's number it fixes the random choices.
        num_samples: How many completions.

    Raises:
        UsageError: Ids that are none, a seed that is no whole number, not one sample.

    Example:
        >>> Request([0, 56], seed=1, num_samples=2).context_ids
        array([ 0, 56], dtype=int32)
    """

    context_ids: Int32
    seed: int
    num_samples: int = 1

    def __post_init__(self) -> None:
        """Check the values; ids become int32."""
        ids = checked_token_ids("context_ids", self.context_ids)
        object.__setattr__(self, "context_ids", ids)
        check_whole_number("seed", self.seed)
        check_whole_number("num_samples", self.num_samples, least=1)


@dataclass(frozen=True, eq=False)
class Completion:
    """A finished text.

    Attributes:
        request: Number of the request, from 0, in the order they came.
        sample: Number of the sample, from 0.
        token_ids: int32, without what ended it. After a stop string: the tokens that lie wholly
            before it; the text may go on for the rest of the token in which it began.
        text: The ids as a continuation of a text: a leading blank is kept, special tokens are left
            out, a character that the length cut in two is left out.
        finish_reason: Why it ended.
        end_token_id: The end token the model wrote; None where something else ended the text.
        end_logprob: Its log-prob, of the kind of `logprobs`.
        logprobs: float64, of each of `token_ids` given the context and what is before it, in nats:
            of the model itself, without temperature, top-k and top-p. As `fam-engine score` gives
            for the same ids, but a row is computed among others there: in fp32 to 2e-5, in bf16 as
            near as rounding leaves that score to fp32's (0.01 a token on the average and at most 0.2;
            an answer's mean to 0.01). None: not computed.
    """

    request: int
    sample: int
    token_ids: Int32
    text: str
    finish_reason: FinishReason
    end_token_id: int | None = None
    end_logprob: float | None = None
    logprobs: npt.NDArray[np.float64] | None = None
