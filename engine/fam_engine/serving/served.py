"""What a server serves: a model under a name, within limits.

In: a resident model. Out: `Served`, which the handlers share, and the checks of what a request asks of the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fam_engine.data.packing import Int32
from fam_engine.jobs.resident import ResidentModel
from fam_engine.model.generation.sequences import find_ends
from fam_engine.serving.protocol import RequestError
from fam_engine.serving.token_texts import TokenTexts


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many may be answered at a time.

    Attributes:
        max_requests: Answered or waiting; more are told to come back.
        max_prompts: Prompts times samples, or responses, of a request.
        max_request_tokens: Tokens of a request in all: prompts, and what may be generated.
        max_body_bytes: Bytes of a request's body.
    """

    max_requests: int = 128
    max_prompts: int = 1024
    max_request_tokens: int = 262_144
    max_body_bytes: int = 4 << 20


@dataclass(frozen=True)
class Served:
    """A model under a name.

    Attributes:
        model: The model.
        name: What requests call it.
        limits: What they may ask for.
        token_texts: Names of its tokens.
        end_ids: Tokens that end its texts.
        created: When it was loaded, seconds since 1970.
    """

    model: ResidentModel
    name: str
    limits: Limits
    token_texts: TokenTexts
    end_ids: frozenset[int]
    created: int = field(default_factory=lambda: int(time.time()))

    @staticmethod
    def under(name: str, model: ResidentModel, limits: Limits) -> Served:
        """Serve a model under a name."""
        encoder = model.encoder
        end_ids = find_ends(model.decoder.config, encoder).token_ids
        return Served(model, name, limits, TokenTexts(encoder.tokenizer), end_ids)

    def check_name(self, name: str) -> None:
        """Refuse another model's name."""
        if name != self.name:
            raise RequestError(
                f"`model` is {name[:80]!r}, expected {self.name!r}, the one that is served",
                status=404,
                param="model",
                code="model_not_found",
            )

    def ids(self, token_ids: Sequence[int], param: str) -> Int32:
        """Check token ids that came with a request."""
        size = self.model.decoder.config.vocab_size
        for extreme in (min(token_ids), max(token_ids)) if token_ids else ():
            if not 0 <= extreme < size:
                found = extreme if abs(extreme) < 10**12 else "far beyond"
                message = f"`{param}` holds the token id {found}, expected 0 to {size - 1}"
                raise RequestError(message, param=param, code="invalid_token_id")
        return np.array(token_ids, np.int32)

    def check_length(self, length: int, param: str) -> None:
        """Refuse a sequence longer than the model."""
        if length > self.model.max_length:
            raise RequestError(
                f"`{param}` asks for {length} tokens in one sequence, expected at most "
                f"{self.model.max_length}",
                param=param,
                code="context_length_exceeded",
            )

    def check_size(self, num_prompts: int, num_tokens: int, param: str) -> None:
        """Refuse a request that asks for too much at once."""
        for found, most, what in (
            (num_prompts, self.limits.max_prompts, "prompts times samples"),
            (num_tokens, self.limits.max_request_tokens, "tokens"),
        ):
            if found > most:
                message = f"the request asks for {found} {what}, expected at most {most}"
                raise RequestError(message, param=param, code="request_too_large")
