"""How long writing takes, from a trial: one and two layers of the model's shape, random weights, real prompts.

In: a model's shape, how it writes, some prompts. Out: seconds. The model itself need not be loaded for it. A figure
from the speed of matrix products alone was twenty times too low on a small model, where a step costs attention, norms,
choosing and bookkeeping more than products; this one comes from the very code that will run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from fam_engine.config import Precision
from fam_engine.data.tokenizer import Ids, TextEncoder
from fam_engine.jobs.random_model import random_decoder, with_all_layers
from fam_engine.jobs.stopwatch import Stopwatch
from fam_engine.model.config import ModelConfig
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.requests import Request, Sampling
from fam_engine.model.generation.stepping import PLAIN_RUNS

# Prompts of a trial; it has as many texts on their way as the run, several to a prompt.
NUM_PROMPTS: Final = 8
# Steps that are timed; many on a GPU, where the time of the one capture varies by more than a step takes.
_STEPS: Final = {"cpu": 8, "cuda": 64}
_ROUNDS: Final = 2


@dataclass(frozen=True)
class WritingSpeed:
    """What writing costs on this machine.

    Attributes:
        prompt_token: Seconds a token of a prompt.
        step: Seconds a step, which gives each text on its way one token.
        num_slots: Texts on their way at a time.
    """

    prompt_token: float
    step: float
    num_slots: int

    def seconds(self, *, num_prompt_tokens: int, num_tokens: int, longest: int) -> float:
        """Predict the time of a run.

        Args:
            num_prompt_tokens: Of all prompts, each read once.
            num_tokens: Of all texts.
            longest: Of one text, which takes as many steps however few others there are.
        """
        steps = max(num_tokens / self.num_slots, min(longest, num_tokens))
        return num_prompt_tokens * self.prompt_token + steps * self.step


def try_writing(
    model: ModelConfig,
    encoder: TextEncoder,
    prompts: Sequence[Ids],
    sampling: Sampling,
    *,
    num_slots: int,
    precision: Precision,
    dtype: torch.dtype,
    device: torch.device,
) -> WritingSpeed:
    """Time the reading of prompts and some steps.

    Args:
        model: The model's shape.
        encoder: Its tokenizer.
        prompts: At least one; the first 8 are used.
        sampling: How the run will choose tokens.
        num_slots: Texts on their way at a time.
        precision: How the model's matrices are held.
        dtype: Compute dtype.
        device: Where.
    """
    # As many texts as slots: one more would wait for a slot, and the steps be counted twice.
    prompts = prompts[: min(NUM_PROMPTS, num_slots)]
    each, more = divmod(num_slots, len(prompts))
    samples = [each + (number < more) for number in range(len(prompts))]
    lengths = text_lengths(device.type)
    times: dict[tuple[int, int], float] = {}
    for num_layers in (1, 2):
        decoder = random_decoder(model, num_layers, precision, dtype, device)
        generator = Generator(decoder, encoder, max_slots=num_slots)
        for length in dict.fromkeys(lengths):
            own = replace(sampling, max_new_tokens=length, stop=())
            times[num_layers, length] = min(
                _time(generator, prompts, own, samples, device) for _ in range(_ROUNDS)
            )
    read, before, after = (
        with_all_layers(model, times[1, length], times[2, length]) for length in lengths
    )
    step = max(after - before, 0.0) / (lengths[2] - lengths[1])
    return WritingSpeed(read / sum(map(len, prompts)), step, num_slots)


def text_lengths(device_type: str) -> tuple[int, int, int]:
    """Give the tokens of texts that are timed: one, which comes with the prompt; before the steps counted; after them.

    The first steps of a run on a GPU are launched kernel by kernel and the next one is captured; all others are
    replayed, at a fraction of the time.
    """
    first = 1 if device_type == "cpu" else 1 + PLAIN_RUNS + 1
    return 1, first, first + _STEPS[device_type]


def _time(
    generator: Generator,
    prompts: Sequence[Ids],
    sampling: Sampling,
    samples: Sequence[int],
    device: torch.device,
) -> float:
    watch = Stopwatch()
    requests = map(Request, prompts, range(len(prompts)), samples)
    for _ in generator.generate(requests, sampling):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return watch.seconds()
