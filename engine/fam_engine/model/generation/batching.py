"""One run of generation: requests in, completions out, all slots kept busy.

In: an iterator of requests, read only as far as slots become free. Out: completions in the order
they finish. Each step gives every text on its way one token; a text that ends leaves its slot to the
next sample in the same step.

The decoder always sees one row a slot, filled up to the grid of 64, free slots included: shapes do
not change while texts come and go. Each text's attention is its own and its random numbers are
counted (`sampling`), so a text does not depend on what else is in the run.

Letters: S slots, R rows (slots or new texts, then filling), D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch

from fam_engine.data.packing import ROW_GRID
from fam_engine.model import ops
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.cache import KVCache
from fam_engine.model.generation.detokenizer import Detokenizer
from fam_engine.model.generation.prompts import Prompt, compute_prompts
from fam_engine.model.generation.requests import Completion, Request, Sampling
from fam_engine.model.generation.sampling import choose, uniform
from fam_engine.model.generation.sequences import Ends, Sequence, StopStrings

# Tokens of prompts computed ahead as one batch: wide enough for full matrix products, and little
# memory while they wait for slots.
_PROMPT_TOKENS = 1024
# Models whose steps have no product above this (1 to 2 ms on a core) run on one thread: a step is
# hundreds of small operations, after each of which threads wait for each other. Measured with two
# threads on two cores that others use too (embedded model, 64 slots): 360 to 620 tokens a second,
# on one thread 2,000 to 3,100.
_FLOPS_FOR_THREADS = 1 << 27


@dataclass(frozen=True)
class Model:
    """All a run needs to know of the model.

    Attributes:
        decoder: It computes.
        detokenizer: Ids to text.
        ends: What ends its texts.
        make_cache: Gives a cache whose slots have room for so many positions.
    """

    decoder: Decoder
    detokenizer: Detokenizer
    ends: Ends
    make_cache: Callable[[int], KVCache]


@dataclass(eq=False)
class _Waiting:
    """A computed prompt and the number of its next sample."""

    prompt: Prompt
    number: int
    request: Request
    limit: int
    next_sample: int = 0


class Run:
    """Generates for one stream of requests.

    Args:
        model: The model.
        requests: The requests.
        sampling: How tokens are chosen.
        on_step: Called after each step with the number of tokens made; may raise.
    """

    def __init__(
        self,
        model: Model,
        requests: Iterator[Request],
        sampling: Sampling,
        on_step: Callable[[int], None],
    ) -> None:
        self._model = model
        self._decoder = model.decoder
        self._requests = enumerate(requests)
        self._sampling = sampling
        self._stops = StopStrings(sampling.stop + model.ends.texts)
        self._on_step = on_step
        self._waiting: deque[_Waiting] = deque()
        self._done: list[Completion] = []
        self._cache: KVCache | None = None
        self._slots: list[Sequence | None] = []

    def completions(self) -> Iterator[Completion]:
        """Yield completions in the order they finish."""
        while True:
            with _step_threads(self._decoder):
                while started := self._start():
                    self._take(started)
            yield from self._done
            self._done.clear()
            if not any(self._slots):
                return
            with _step_threads(self._decoder):
                self._step()

    # -- new texts -------------------------------------------------------------------------------

    def _start(self) -> list[tuple[int, Prompt]]:
        """Give free slots to waiting samples; also give each one's slot and prompt."""
        started: list[tuple[int, Prompt]] = []
        while self._is_waiting() and self._has_room(self._waiting[0]):
            waiting = self._waiting[0]
            slot = self._slots.index(None)
            self._slots[slot] = self._sequence(waiting)
            assert self._cache is not None
            self._cache.put(slot, waiting.prompt.kv)
            started.append((slot, waiting.prompt))
            waiting.next_sample += 1
            if waiting.next_sample == waiting.request.num_samples:
                self._waiting.popleft()
        return started

    def _sequence(self, waiting: _Waiting) -> Sequence:
        return Sequence(
            request=waiting.number,
            sample=waiting.next_sample,
            seed=waiting.request.seed,
            limit=waiting.limit,
            ends=self._model.ends,
            stops=self._stops,
            detokenizer=self._model.detokenizer,
        )

    def _has_room(self, waiting: _Waiting) -> bool:
        """Whether a slot is free that is long enough; a cache in use is not exchanged."""
        needed = len(waiting.request.context_ids) + waiting.limit
        if self._cache is None or (needed > self._cache.capacity and not any(self._slots)):
            longest = max(len(w.request.context_ids) + w.limit for w in self._waiting)
            if self._cache is not None:  # so that it is exchanged a few times only
                doubled = 2 * self._cache.capacity
                longest = max(longest, min(doubled, self._decoder.config.max_position_embeddings))
            self._cache = None  # its memory goes before new memory comes
            self._cache = self._model.make_cache(longest)
            self._slots = [None] * self._cache.num_slots
        return needed <= self._cache.capacity and None in self._slots

    def _is_waiting(self) -> bool:
        """Whether a sample waits, after reading and computing more prompts if none did."""
        if not self._waiting and (not self._slots or None in self._slots):
            self._read()
        return bool(self._waiting)

    def _read(self) -> None:
        """Read requests and compute their prompts, as one batch."""
        asked: list[tuple[int, Request, int]] = []
        num_tokens = 0
        for number, request in self._requests:
            limit = min(
                self._sampling.max_new_tokens,
                self._decoder.config.max_position_embeddings - len(request.context_ids),
            )
            if limit < 1:  # the model has no place for even one more token
                self._done += _nothing(number, request)
                continue
            asked.append((number, request, limit))
            num_tokens += len(request.context_ids)
            if num_tokens >= _PROMPT_TOKENS or self._decoder.device.type == "cuda":
                break
        if asked:
            prompts = compute_prompts(self._decoder, [one.context_ids for _, one, _ in asked])
            for prompt, (number, request, limit) in zip(prompts, asked, strict=True):
                self._waiting.append(_Waiting(prompt, number, request, limit))

    def _take(self, started: list[tuple[int, Prompt]]) -> None:
        """Choose the first token of new texts."""
        hidden = torch.stack([prompt.hidden_D for _, prompt in started])
        filling = -len(started) % ROW_GRID
        hidden_RD = torch.cat((hidden, hidden.new_zeros(filling, hidden.shape[1])))
        self._choose([self._slots[slot] for slot, _ in started], hidden_RD)

    # -- steps -----------------------------------------------------------------------------------

    def _step(self) -> None:
        """Give every text on its way one more token."""
        cache, device = self._cache, self._decoder.device
        assert cache is not None
        filling = [0] * (-len(self._slots) % ROW_GRID)
        last = [sequence.token_ids[-1] if sequence else 0 for sequence in self._slots]
        places = cache.begin_step([sequence is not None for sequence in self._slots])
        hidden_RD = self._decoder.hidden_next(
            torch.tensor(last + filling, device=device),
            torch.tensor(places + filling, device=device),
            cache.attend,
        )
        self._choose(self._slots, hidden_RD)

    def _choose(self, sequences: Rows[Sequence | None], hidden_RD: torch.Tensor) -> None:
        """Choose a token for each row that has a sequence; free the slots of those that end."""
        tokens, logprobs, is_finite = self._tokens(sequences, hidden_RD)
        rows = [(row, sequence) for row, sequence in enumerate(sequences) if sequence]
        for row, sequence in rows:
            is_token = is_finite[row]
            reason = sequence.add(tokens[row], logprobs[row]) if is_token else "nonfinite"
            if reason:
                self._slots[self._slots.index(sequence)] = None
                self._done.append(sequence.completion(reason))
        self._on_step(len(rows))

    @torch.inference_mode()
    def _tokens(
        self, sequences: Rows[Sequence | None], hidden_RD: torch.Tensor
    ) -> tuple[list[int], list[float], list[bool]]:
        """Give a token a row, its log-prob, and whether the row has numbers to choose from."""
        count = len(sequences)
        logits_RV = ops.head_logits(hidden_RD, self._decoder.weights.head_VD)[:count]
        numbers = [
            uniform(sequence.seed, sequence.sample, len(sequence.token_ids)) if sequence else 0.0
            for sequence in sequences
        ]
        uniform_R = torch.tensor(numbers, dtype=torch.float64, device=hidden_RD.device)
        tokens_R, logprobs_R = choose(logits_RV, uniform_R, self._sampling)
        is_finite_R = hidden_RD[:count].isfinite().all(-1)
        return tokens_R.tolist(), logprobs_R.tolist(), is_finite_R.tolist()


@contextlib.contextmanager
def _step_threads(decoder: Decoder) -> Iterator[None]:
    """Run on one thread what gains nothing from more."""
    config, before = decoder.config, torch.get_num_threads()
    flops = 2 * ROW_GRID * config.hidden_size * 2 * config.intermediate_size
    if decoder.device.type == "cpu" and flops < _FLOPS_FOR_THREADS and before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _nothing(number: int, request: Request) -> list[Completion]:
    ids, logprobs = np.empty(0, np.int32), np.empty(0)
    return [
        Completion(number, sample, ids, "", "length", logprobs=logprobs)
        for sample in range(request.num_samples)
    ]
