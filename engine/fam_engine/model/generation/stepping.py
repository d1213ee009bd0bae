"""One step of all slots: each text on its way gets one more token, and the host is not asked.

In: prompts' last hidden states and texts' seeds. Out: a token a slot, its log-prob
and whether there were numbers to choose from, in tensors of the device. What a step needs of the one
before (last token, length, how many tokens a text may still have) stays on the device, in tensors that
keep their place: so many steps can be asked for before anybody looks, and a GPU can replay a step as a
CUDA graph. A text that has ended goes on as a free slot does: computed, and seen by nobody.

On a GPU with NF4 matrices a step has as few rows as a small grid allows, as bits there do not depend
on the number of rows; elsewhere rows are filled up to the grid of 64 (see `fam_engine.model.products`). The
head has 64 rows or more everywhere: a product of cuBLAS on a GPU.

Letters: S slots, R rows of a step (slots, then filling), N tokens that begin, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Final

import torch

from fam_engine.data.packing import ROW_GRID, on_grid
from fam_engine.model import ops, products
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.cache import KVCache
from fam_engine.model.generation.requests import Sampling
from fam_engine.model.generation.sampling import choose
from fam_engine.model.out_of_memory import memory_errors

# Rows of a step on a GPU with NF4 matrices; a graph each.
_FEW_ROWS: Final = (1, 2, 4, 8, 16, 32, 64)
# Steps of a number of rows before it is captured: kernels are compiled and loaded by then. Of 8B on an H100 a step that
# is launched kernel by kernel took some 40 ms, a capture 60, a replay 4: it pays from the third step on.
PLAIN_RUNS: Final = 1


class Stepper:
    """The state of all slots on the device, and the step that moves it on.

    Args:
        decoder: The model.
        cache: Its cache; slots and lengths are its.
        sampling: How tokens are chosen.
        end_ids: Tokens that end a text.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, sampling: Sampling, end_ids: Collection[int]
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._sampling = sampling
        device, num_rows = decoder.device, on_grid(cache.num_slots)
        self._last_R = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._seed_S = torch.zeros(cache.num_slots, dtype=torch.int64, device=device)
        self._left_S = torch.zeros_like(self._seed_S)
        self._position_R = torch.zeros_like(self._last_R)
        self._chosen_3S = torch.zeros(3, cache.num_slots, dtype=torch.float64, device=device)
        self._end_ids = torch.tensor(sorted(end_ids), dtype=torch.int64, device=device)
        # Held here, so that they stay where a graph finds them.
        longest = decoder.config.max_position_embeddings
        room = cache.prompt_capacity + cache.capacity
        self._rope = decoder.rope_tables(min(longest, room))
        like = torch.empty(0, dtype=decoder.compute_dtype, device=device)
        self._has_few_rows = products.takes_few_rows(decoder.weights, like)
        # Not in fp64, whose choice asks the host.
        self._is_captured = like.is_cuda and ops.takes_triton(like)
        self._pool = torch.cuda.graph_pool_handle() if self._is_captured else None
        self._stream = torch.cuda.Stream(device) if self._is_captured else None
        self._captured: dict[int, CapturedStep] = {}
        self._num_runs: Counter[int] = Counter()

    @torch.inference_mode()
    def begin(
        self,
        slots: Sequence[int],
        limits: Sequence[int],
        hidden: Sequence[torch.Tensor],
        seeds: Sequence[int],
    ) -> torch.Tensor:
        """Choose the first tokens of texts, whose slots the cache has begun.

        Args:
            slots: N of them.
            limits: The most tokens each may have.
            hidden: The hidden state of each prompt's last token, [D].
            seeds: The `text_seed` of each.

        Returns:
            float64[3, N]: tokens, their log-probs, and 1 where the model gave finite numbers.
        """
        slot_N, limit_N, seed_N = torch.tensor([slots, limits, seeds], device=self._decoder.device)
        position_N = (self._cache.before_S + self._cache.lengths_S)[slot_N]
        filling = [torch.zeros_like(hidden[0])] * (-len(hidden) % ROW_GRID)
        chosen_3N = self._choose(torch.stack([*hidden, *filling]), seed_N, position_N)
        self._seed_S[slot_N] = seed_N
        self._last_R[slot_N] = chosen_3N[0].long()
        self._left_S[slot_N] = (limit_N - 1).where(~self._is_over(chosen_3N), 0)
        return chosen_3N

    @torch.inference_mode()
    def step(self, num_slots: int) -> torch.Tensor:
        """Give one more token to each text in the first `num_slots` slots; beyond them no slot has a text.

        Returns:
            float64[3, num_slots] as from `begin`; of slots whose text has ended, anything.
        """
        num_rows = self._num_rows(num_slots)
        self._run(num_rows)
        return self._chosen_3S[:, :num_slots].clone()

    def end(self, slot: int) -> None:
        """Let a text go no further: what ended it is not seen here."""
        self._left_S[slot] = 0

    def _run(self, num_rows: int) -> None:
        """Run a step of so many rows: kernel by kernel, or as a graph where it comes often enough."""
        self._num_runs[num_rows] += 1
        if not self._is_captured or self._num_runs[num_rows] <= PLAIN_RUNS:
            self.advance(num_rows)
            return
        if num_rows not in self._captured:
            self._captured[num_rows] = CapturedStep(self, num_rows, self._pool, self._stream)
        self._captured[num_rows].replay()

    def _num_rows(self, num_slots: int) -> int:
        if self._has_few_rows and num_slots <= _FEW_ROWS[-1]:
            return next(rows for rows in _FEW_ROWS if rows >= num_slots)
        return len(self._last_R)

    @torch.inference_mode()
    def advance(self, num_rows: int) -> None:
        """Run a step of so many rows, from the state's tensors to the same."""
        cache, last_R = self._cache, self._last_R[:num_rows]
        count = min(num_rows, cache.num_slots)
        left_S, lengths_S = self._left_S[:count], cache.lengths_S[:count]
        is_active_S = left_S > 0
        position_R = self._position_R[:num_rows]
        torch.add(cache.before_S[:count], lengths_S, out=position_R[:count])
        seen_S = ((lengths_S + 1) * is_active_S).int()
        hidden_RD = self._decoder.hidden_next(
            last_R, position_R, partial(cache.attend, seen_S), rope=self._rope
        )
        filling = hidden_RD.new_zeros(-num_rows % ROW_GRID, hidden_RD.shape[1])
        hidden_RD = torch.cat((hidden_RD, filling))
        chosen_3S = self._choose(hidden_RD, self._seed_S[:count], position_R[:count] + 1)
        self._chosen_3S[:, :count] = chosen_3S
        last_R[:count] = chosen_3S[0].long()
        lengths_S += is_active_S
        left_S -= is_active_S.long()
        left_S *= ~self._is_over(chosen_3S)

    def _choose(
        self, hidden_RD: torch.Tensor, seed_S: torch.Tensor, position_S: torch.Tensor
    ) -> torch.Tensor:
        """Choose a token for each of the first rows, as `begin` gives them."""
        count = len(seed_S)
        logits_RV = products.head_logits(hidden_RD, self._decoder.weights.head_VD)[:count]
        tokens_S, logprobs_S = choose(logits_RV, seed_S, position_S, self._sampling)
        is_finite_S = hidden_RD[:count].isfinite().all(-1)
        return torch.stack((tokens_S.double(), logprobs_S, is_finite_S.double()))

    def _is_over(self, chosen_3N: torch.Tensor) -> torch.Tensor:
        """Whether a text ends with its token, its length aside."""
        tokens_N, _, is_finite_N = chosen_3N
        is_end_N = (tokens_N[:, None] == self._end_ids).any(-1)
        is_over_N: torch.Tensor = is_end_N | (is_finite_N == 0)
        return is_over_N


class CapturedStep:
    """A step of so many rows as a CUDA graph.

    Graphs of one stepper share the memory of what they compute in between: none of it is read after
    its own replay. So they do a stream to be captured on, as the memory that cuBLAS works in is kept by
    the stream: with one for all steppers, which torch gives who names none, newer torch frees it for all
    of them when the graphs of one go (pytorch/pytorch issue 193402). A capture waits for all streams
    before it begins, and replays are asked for where everything else is, so nothing else need wait.

    Args:
        stepper: Whose step; it has run before.
        num_rows: R.
        pool: The memory, from `torch.cuda.graph_pool_handle`.
        stream: Where it is captured.

    Raises:
        torch.OutOfMemoryError: There is no memory left for it, of torch's or of the driver's.
    """

    def __init__(
        self,
        stepper: Stepper,
        num_rows: int,
        pool: Any,  # noqa: ANN401
        stream: torch.cuda.Stream | None,
    ) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Notes what is launched, and runs nothing.
        with memory_errors(), torch.cuda.graph(self._graph, pool=pool, stream=stream):
            stepper.advance(num_rows)

    def replay(self) -> None:
        """Run the step."""
        self._graph.replay()
