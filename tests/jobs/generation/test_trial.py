"""The trial of a dry run: what it makes of its timings, and that it runs what will run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.generation import trial
from fam_engine.jobs.generation.trial import WritingSpeed, text_lengths, try_writing
from fam_engine.model.config import ModelConfig
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.requests import Sampling
from fam_engine.model.generation.stepping import PLAIN_RUNS, Stepper

PROMPTS = [np.arange(2, 2 + length, dtype=np.int32) for length in (5, 7)]


def attempt(folder: Path, num_slots: int) -> WritingSpeed:
    encoder = TextEncoder(folder, template="auto")
    try:
        return try_writing(
            ModelConfig.from_folder(folder),
            encoder,
            PROMPTS,
            Sampling(max_new_tokens=100, temperature=1.0, stop=("x",)),
            num_slots=num_slots,
            precision="nf4",
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
    finally:
        encoder.close()


def test_layers_and_steps_are_told_apart(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, list[int]]] = []

    def timed(
        generator: Generator, _: object, sampling: Sampling, samples: list[int], device: object
    ) -> float:
        layers = generator._model.decoder.config.num_layers
        asked.append((layers, sampling.max_new_tokens, samples))
        assert sampling.stop == ()
        # Prompts: 1 s and 2 s a layer. Steps: 0.1 s and 0.3 s a layer.
        return 1.0 + 2.0 * layers + (sampling.max_new_tokens - 1) * (0.1 + 0.3 * layers)

    monkeypatch.setattr(trial, "_time", timed)
    speed = attempt(tiny_model, 7)
    assert speed.prompt_token == pytest.approx((1 + 2 * 2) / 12)  # two layers, 12 tokens
    assert speed.step == pytest.approx(0.1 + 0.3 * 2)
    kinds = [(1, 1), (1, 9), (2, 1), (2, 9)]
    assert asked == [(*kind, [4, 3]) for kind in kinds for _ in range(2)]


def test_steps_of_a_gpu_are_timed_once_they_are_replayed() -> None:
    one, before, after = text_lengths("cuda")
    assert one == 1
    assert before - one > PLAIN_RUNS  # the step after the plain ones is captured
    assert after - before >= 64


def test_few_texts_take_as_many_steps_as_the_longest() -> None:
    speed = WritingSpeed(prompt_token=0.5, step=2.0, num_slots=10)
    assert speed.seconds(num_prompt_tokens=4, num_tokens=1000, longest=100) == 2 + 200
    assert speed.seconds(num_prompt_tokens=4, num_tokens=300, longest=100) == 2 + 200
    assert speed.seconds(num_prompt_tokens=4, num_tokens=3000, longest=100) == 2 + 600


def test_it_runs_the_generator(tiny_model: Path) -> None:
    speed = attempt(tiny_model, 3)
    assert speed.num_slots == 3
    assert speed.prompt_token > 0


@pytest.mark.parametrize("num_slots", [1, 2, 3, 5, 64])
def test_each_text_has_a_slot(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, num_slots: int
) -> None:
    """Of texts that wait for one, steps would be counted twice."""
    counts, step = [], Stepper.step

    def counting(self: Stepper, in_use: int) -> torch.Tensor:
        counts.append(in_use)
        return step(self, in_use)

    monkeypatch.setattr(Stepper, "step", counting)
    attempt(tiny_model, num_slots)
    # Two rounds of one and of two layers; texts of one token need no step.
    assert counts == [num_slots] * 2 * 2 * 8
