"""The generator: a loaded model that continues contexts.

In: requests, as a stream. Out: completions in the order they finish; the same request gives the same
text whatever else is asked and however many slots there are (on the CPU to the bit; on a GPU as far
as its kernels give a row the same bits in every place).

Matrices that are not stored as they are multiplied (NF4, an adapter beside its matrix) would have to
be made ready at every step, for one token a slot. If they fit in half of the free memory they are
kept ready for the life of the generator; else each step makes them ready one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
import torch

from fam_engine.data.packing import ROW_GRID, on_grid
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.model import ops
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.batching import Model, Run
from fam_engine.model.generation.cache import KVCache, bytes_per_position
from fam_engine.model.generation.detokenizer import Detokenizer
from fam_engine.model.generation.requests import Completion, Request, Sampling
from fam_engine.model.generation.sequences import Ends, find_ends
from fam_engine.model.memory import free_bytes

# A step costs the same for 1 to 64 rows: that is the height of its matrix products.
MAX_SLOTS: Final = ROW_GRID
# Part of the free memory that ready matrices may take, and then of what is left the cache.
_SHARE_OF_FREE: Final = 0.5


class Generator:
    """Continues contexts with one model.

    Args:
        decoder: The model.
        encoder: Its tokenizer and template.
        max_slots: Most texts on their way at a time, up to 64: beyond, a GPU would multiply otherwise, and a
            text would depend on how many there are. Fewer if memory does not allow so many. May be set again
            between runs.
        stops_at_turns: Whether a text ends where the template's turns do also if that is ordinary text.
        max_length: Longest sequence, context and text together, tokens; None: the model's own limit.

    Raises:
        ValueError: Slots beyond 64.
    """

    def __init__(
        self,
        decoder: Decoder,
        encoder: TextEncoder,
        *,
        max_slots: int = MAX_SLOTS,
        stops_at_turns: bool = True,
        max_length: int | None = None,
    ) -> None:
        if not 1 <= max_slots <= MAX_SLOTS:
            raise ValueError(f"max_slots is {max_slots}, expected 1 to {MAX_SLOTS}")
        # On a GPU a step reads NF4 as it is, a quarter of the bytes.
        is_worth_it = (decoder.device.type, decoder.precision) != ("cuda", "nf4")
        fits = decoder.ready_bytes <= _SHARE_OF_FREE * free_bytes(decoder.device)
        self.max_slots = max_slots
        self._tokenizer = encoder.tokenizer
        self._end_of_turn: list[int] = encoder.end_of_turn_ids.tolist()
        ends = find_ends(decoder.config, encoder)
        self._model = Model(
            decoder=decoder.made_ready() if fits and is_worth_it else decoder,
            detokenizer=Detokenizer(encoder.tokenizer),
            ends=ends if stops_at_turns else Ends(ends.token_ids, ()),
            make_cache=self._make_cache,
            max_length=max_length or decoder.config.max_position_embeddings,
        )

    def generate(
        self,
        requests: Iterable[Request],
        sampling: Sampling,
        *,
        on_step: Callable[[int], None] = lambda _: None,
        is_wanted: Callable[[int], bool] = lambda _: True,
    ) -> Iterator[Completion]:
        """Continue contexts.

        Args:
            requests: Read as slots become free. One that needs longer slots than there are waits
                until all are free, so longest first is fastest.
            sampling: How tokens are chosen.
            on_step: Called after each step with the number of tokens made; may raise, which ends
                the run.
            is_wanted: Whether a request, by its number, still is. Asked between steps; one that is not is
                continued no further, and what it lacks never comes.

        Yields:
            Completions, in the order they finish.
        """
        yield from Run(self._model, iter(requests), sampling, on_step, is_wanted).completions()

    def respells(self, completion: Completion) -> bool:
        """Whether the tokenizer gives a completion's text the ids that the model wrote it with."""
        ids, _ = self._tokenizer.encode_batch([completion.text], continuation=True)
        return np.array_equal(ids, completion.token_ids)

    def ends_turn(self, completion: Completion) -> bool:
        """Whether a completion ended with what ends a turn, token for token."""
        return self._end_of_turn == [completion.end_token_id]

    def _make_cache(self, longest_prompt: int, max_new_tokens: int, num_samples: int) -> KVCache:
        """Make a cache with as many slots as memory allows; see `Model.make_cache`."""
        decoder = self._model.decoder
        a_position = bytes_per_position(decoder.config, decoder.compute_dtype)
        free = int(_SHARE_OF_FREE * free_bytes(decoder.device)) // a_position
        like = torch.empty(0, dtype=decoder.compute_dtype, device=decoder.device)
        keeps_apart = ops.takes_triton(like)
        if keeps_apart:
            prompt, capacity = on_grid(longest_prompt), on_grid(max_new_tokens)
            fitting = free // (capacity + prompt // num_samples)
        else:
            longest = decoder.config.max_position_embeddings
            prompt, capacity = 0, on_grid(min(longest_prompt + max_new_tokens, longest))
            fitting = free // capacity
        num_slots = max(1, min(self.max_slots, fitting))
        # A prompt stays until the last of its samples ends: with memory to spare none waits for it.
        room_left = (free - num_slots * capacity) // prompt if keeps_apart else 0
        return KVCache(
            decoder.config,
            num_slots=num_slots,
            capacity=capacity,
            num_prompts=max(1, min(num_slots, room_left)) if keeps_apart else 0,
            prompt_capacity=prompt,
            dtype=decoder.compute_dtype,
            device=decoder.device,
        )
