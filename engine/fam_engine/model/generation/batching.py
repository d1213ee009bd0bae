"""One run of generation: requests in, completions out, all slots kept busy.

In: an iterator of requests, read only as far as slots become free. Out: completions in the order
they finish. A round gives free slots to new texts, runs some steps on the device (`stepping`), each of
which gives every text on its way one token, and then looks at what was chosen: ends of texts, stop
strings. On a CPU a round is one step; on a GPU several, so that it never waits for the host. What a
text got after its end is dropped; what nobody wants any more is dropped between rounds.

Each text's attention is its own and its random numbers are counted (`sampling`), so a text does not
depend on what else is in the run, nor on the number of steps a round.

Letters: S slots, N steps of a round.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from fam_engine.data.packing import ROW_GRID
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.cache import KVCache
from fam_engine.model.generation.detokenizer import Detokenizer
from fam_engine.model.generation.prompts import (
    BATCH_PROMPTS,
    BATCH_TOKENS,
    Prompt,
    compute_prompts,
)
from fam_engine.model.generation.requests import Completion, Request, Sampling
from fam_engine.model.generation.sampling import text_seed
from fam_engine.model.generation.sequences import Ends, Sequence, StopStrings
from fam_engine.model.generation.stepping import Stepper
from fam_engine.model.out_of_memory import memory_errors

# Models whose steps have no product above this (1 to 2 ms on a core) run on one thread: a step is
# hundreds of small operations, after each of which threads wait for each other. Measured with two
# threads on two cores that others use too (embedded model, 64 slots): 360 to 620 tokens a second,
# on one thread 2,000 to 3,100.
_FLOPS_FOR_THREADS = 1 << 27
# On a GPU: the host looks at tokens this often. A slot whose text has ended idles half of it, 3 % of
# texts of 150 tokens.
STEPS_A_ROUND = {"cpu": 1, "cuda": 8}

# Texts by slot, and for each its token, log-prob and whether it is one, float64[3, S].
_Chosen = tuple[Rows[tuple[int, Sequence | None]], torch.Tensor]


@dataclass(frozen=True)
class Model:
    """All a run needs to know of the model.

    Attributes:
        decoder: It computes.
        detokenizer: Ids to text.
        ends: What ends its texts.
        make_cache: Gives a cache for prompts and continuations of at most so many tokens, and at
            least so many samples of each prompt.
        max_length: Longest sequence, prompt and continuation together, tokens.
    """

    decoder: Decoder
    detokenizer: Detokenizer
    ends: Ends
    make_cache: Callable[[int, int, int], KVCache]
    max_length: int


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
        on_step: Called after each step with the number of tokens made; may raise. After a round, for
            each of its steps.
        is_wanted: Whether a request, by its number, still is; asked before each round.
    """

    def __init__(
        self,
        model: Model,
        requests: Iterator[Request],
        sampling: Sampling,
        on_step: Callable[[int], None],
        is_wanted: Callable[[int], bool],
    ) -> None:
        self._model = model
        self._decoder = model.decoder
        self._requests = enumerate(requests)
        # The one that was read and left for the next batch of prompts.
        self._held: list[tuple[int, Request]] = []
        self._sampling = sampling
        self._stops = StopStrings(sampling.stop + model.ends.texts)
        self._on_step = on_step
        self._is_wanted = is_wanted
        self._waiting: deque[_Waiting] = deque()
        self._done: list[Completion] = []
        self._slots: list[Sequence | None] = []
        self._cache: KVCache | None = None
        self._stepper: Stepper | None = None
        self._longest_prompt = 0

    def completions(self) -> Iterator[Completion]:
        """Yield completions in the order they finish."""
        is_going = True
        try:
            while is_going:
                with _step_threads(self._decoder):
                    is_going = self._round()
                yield from self._done
                self._done.clear()
        finally:
            # Not when an error's traceback lets go of this run: with graphs that go, newer torch frees memory
            # that those of a later run multiply in (pytorch/pytorch issue 193402).
            self._cache = self._stepper = None

    @memory_errors()
    def _round(self) -> bool:
        """Begin texts, run some steps, and look at the tokens; False if there is nothing left to do."""
        self._drop_unwanted()
        started = self._start()
        if not any(self._slots):
            return False
        chosen = [self._begin(started)] if started else []
        chosen += self._steps({slot for slot, _ in started})
        for slots, values_3S in chosen:
            self._look(slots, values_3S.tolist())
        return True

    def _drop_unwanted(self) -> None:
        """Free the slots of requests that nobody wants any more, and begin no text of theirs."""
        for slot, text in enumerate(self._slots):
            if text and not self._is_wanted(text.request):
                self._free(slot)
        self._waiting = deque(one for one in self._waiting if self._is_wanted(one.number))
        self._held = [one for one in self._held if self._is_wanted(one[0])]

    # -- new texts -------------------------------------------------------------------------------

    def _start(self) -> list[tuple[int, Prompt]]:
        """Give free slots to waiting samples; also give each one's slot and prompt."""
        started: list[tuple[int, Prompt]] = []
        while self._is_waiting() and self._has_room(self._waiting[0]):
            waiting = self._waiting[0]
            slot = self._slots.index(None)
            self._slots[slot] = self._sequence(waiting)
            assert self._cache is not None
            self._cache.begin(slot, waiting.number, waiting.prompt.kv)
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
        needed = len(waiting.request.context_ids), waiting.limit
        if self._cache is None or not (any(self._slots) or self._cache.fits(*needed)):
            self._exchange_cache()
        assert self._cache is not None
        return (
            self._cache.fits(*needed)
            and None in self._slots
            and self._cache.has_place(waiting.number)
        )

    def _exchange_cache(self) -> None:
        """Make a cache in which all that waits has room."""
        longest = max(len(waiting.request.context_ids) for waiting in self._waiting)
        longest = max(longest, 2 * self._longest_prompt)  # so that it is exchanged a few times only
        most = self._model.max_length - 1
        self._longest_prompt = min(longest, most)
        self._cache = self._stepper = None  # their memory goes before new memory comes
        self._cache = self._model.make_cache(
            self._longest_prompt,
            min(self._sampling.max_new_tokens, most),
            min(waiting.request.num_samples for waiting in self._waiting),
        )
        ends = self._model.ends.token_ids
        self._stepper = Stepper(self._decoder, self._cache, self._sampling, ends)
        self._slots = [None] * self._cache.num_slots

    def _is_waiting(self) -> bool:
        """Whether a sample waits, after reading and computing more prompts if none did."""
        if not self._waiting and (not self._slots or None in self._slots):
            self._read()
        return bool(self._waiting)

    def _read(self) -> None:
        """Read requests and compute their prompts, as one batch."""
        asked: list[tuple[int, Request, int]] = []
        num_tokens = 0
        held, self._held = self._held, []
        for number, request in chain(held, self._requests):
            limit = min(
                self._sampling.max_new_tokens,
                self._model.max_length - len(request.context_ids),
            )
            if limit < 1:  # there is no place for even one more token
                self._done += _nothing(number, request)
                continue
            num_tokens += len(request.context_ids)
            if asked and num_tokens > BATCH_TOKENS:
                self._held = [(number, request)]
                break
            asked.append((number, request, limit))
            if len(asked) == BATCH_PROMPTS:
                break
        if asked:
            prompts = compute_prompts(self._decoder, [one.context_ids for _, one, _ in asked])
            for prompt, (number, request, limit) in zip(prompts, asked, strict=True):
                self._waiting.append(_Waiting(prompt, number, request, limit))

    # -- steps -----------------------------------------------------------------------------------

    def _begin(self, started: list[tuple[int, Prompt]]) -> _Chosen:
        """Choose the first token of new texts."""
        slots = [slot for slot, _ in started]
        texts = {slot: self._slots[slot] for slot in slots}
        assert self._stepper is not None
        values_3N = self._stepper.begin(
            slots,
            [text.limit for text in texts.values() if text],
            [prompt.hidden_D for _, prompt in started],
            [text_seed(text.seed, text.sample) for text in texts.values() if text],
        )
        return list(texts.items()), values_3N

    def _steps(self, started: set[int]) -> Iterator[_Chosen]:
        """Run the steps of a round; texts that have just started have a token nobody has seen yet."""
        made = [
            len(text.token_ids) + (slot in started) if text else 0
            for slot, text in enumerate(self._slots)
        ]
        left = [text.limit - count for text, count in zip(self._slots, made, strict=True) if text]
        last = max(slot for slot, text in enumerate(self._slots) if text)
        texts = list(enumerate(self._slots[: last + 1]))
        num_steps = min(max(left), STEPS_A_ROUND[self._decoder.device.type])
        assert self._stepper is not None
        for _ in range(num_steps):
            yield texts, self._stepper.step(last + 1)

    def _look(self, texts: Rows[tuple[int, Sequence | None]], values: list[list[float]]) -> None:
        """Take the tokens of a step; free the slots of texts that end."""
        num_tokens = 0
        for (slot, text), token, logprob, is_finite in zip(texts, *values, strict=True):
            if text is None or self._slots[slot] is not text:
                continue  # it had ended before
            num_tokens += 1
            reason = text.add(int(token), logprob) if is_finite else "nonfinite"
            if reason:
                self._free(slot)
                self._done.append(text.completion(reason))
        self._on_step(num_tokens)

    def _free(self, slot: int) -> None:
        assert self._cache is not None
        assert self._stepper is not None
        self._slots[slot] = None
        self._cache.end(slot)
        self._stepper.end(slot)


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
