"""What is asked of a generator, and what it gives back.

In: nothing. Out: the types `Sampling`, `Request`, `Completion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

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
        stop: Strings that end a text; they are not part of it.

    Raises:
        UsageError: A value out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        problems = {
            f"max_new_tokens {self.max_new_tokens}, expected at least 1": self.max_new_tokens < 1,
            f"temperature {self.temperature}, expected 0, or 0.001 to 100": (
                self.temperature != 0 and not 0.001 <= self.temperature <= 100
            ),
            f"top_p {self.top_p}, expected more than 0, at most 1": not 0 < self.top_p <= 1,
            f"top_k {self.top_k}, expected at least 0": self.top_k < 0,
            "an empty stop string": "" in self.stop,
        }
        for problem, is_there in problems.items():
            if is_there:
                raise UsageError(f"sampling has {problem}", code="E_SAMPLING")


@dataclass(frozen=True, eq=False)
class Request:
    """A context to be continued.

    Attributes:
        context_ids: int32, at least one.
        seed: Of this record alone: with the sample's number it fixes the random choices.
        num_samples: How many completions.
    """

    context_ids: Int32
    seed: int
    num_samples: int = 1


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
            for the same ids, to 1e-5 in fp32 (a row is computed among others there). None: not
            computed.
    """

    request: int
    sample: int
    token_ids: Int32
    text: str
    finish_reason: FinishReason
    end_token_id: int | None = None
    end_logprob: float | None = None
    logprobs: npt.NDArray[np.float64] | None = None
