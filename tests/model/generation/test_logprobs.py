"""The log-probs of generated tokens against a scoring pass over the same ids, and over the same text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from fam_engine.data.tokenizer import TextEncoder
from fam_engine.data.turns import Message
from fam_engine.embedded import DEMO_RECORDS, MODEL
from fam_engine.jobs.scoring.continuations import continuations
from fam_engine.jobs.scoring.scorer import Scorer
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.requests import Request, Sampling
from fam_engine.model.generation.sampling import chosen_logprobs
from fam_engine.model.loading import load_model
from tests.model.generation.conftest import Load, random_requests

# In fp32, nats: attention sums for one query in another order than for many, and so does the head.
TOLERANCE = 1e-5


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 11}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("smollm3", {}),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_equal_a_scoring_pass_over_the_same_ids(
    load: Load, model_type: str, overrides: dict[str, Any], temperature: float
) -> None:
    decoder, encoder = load(model_type, **overrides)
    requests = random_requests([1, 3, 30, 64, 70], num_samples=2)
    sampling = Sampling(max_new_tokens=40, temperature=temperature, top_p=0.9)
    found = list(Generator(decoder, encoder, max_slots=4).generate(requests, sampling))
    pairs = [(requests[one.request].context_ids, one.token_ids) for one in found]
    for scored in continuations(decoder, pairs, max_tokens=512):
        logprobs = found[scored.index].logprobs
        assert logprobs is not None
        assert logprobs.dtype == np.float64
        assert len(logprobs) == len(found[scored.index].token_ids) > 0
        assert np.abs(logprobs - scored.facts.logprobs).max() <= TOLERANCE


def test_equal_the_score_of_the_same_text() -> None:
    encoder = TextEncoder(MODEL)
    lines = DEMO_RECORDS.read_text(encoding="utf-8").splitlines()[:12]
    prompts = [json.loads(line)["prompt"] for line in lines]
    contexts = [encoder.encode_context([Message("user", text)], text) for text in prompts]
    decoder = load_model("embedded", precision="fp32", compute_dtype="fp32")
    requests = [Request(context, seed) for seed, context in enumerate(contexts)]
    found = list(Generator(decoder, encoder).generate(requests, Sampling(max_new_tokens=60)))
    num_compared = 0
    with Scorer("embedded", precision="fp32", compute_dtype="fp32") as scorer:
        for one in found:
            again, _ = encoder.tokenizer.encode_batch([one.text], continuation=True)
            assert one.logprobs is not None
            if again.tolist() == one.token_ids.tolist():
                theirs = scorer.token_logprobs(prompts[one.request], one.text)
                theirs = theirs[: len(one.logprobs)]  # the end of the turn is scored too
                assert np.abs(one.logprobs - theirs).max() <= TOLERANCE
                num_compared += 1
    assert num_compared > 3


def test_a_stop_string_takes_the_log_probs_of_what_it_takes(load: Load) -> None:
    decoder, encoder = load("llama")

    def complete(*stop: str) -> tuple[str, list[float]]:
        sampling = Sampling(max_new_tokens=30, stop=stop)
        (one,) = Generator(decoder, encoder).generate(random_requests([12]), sampling)
        assert one.logprobs is not None
        assert len(one.logprobs) == len(one.token_ids)
        return one.text, one.logprobs.tolist()

    text, logprobs = complete()
    cut, fewer = complete(text[6:10])
    assert len(cut) < len(text)
    assert fewer == logprobs[: len(fewer)]


@pytest.mark.parametrize("vocab_size", [7, 3000, 70_000])
def test_log_probs_are_of_the_whole_distribution(vocab_size: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(70, vocab_size) * 4
    tokens = torch.randint(vocab_size, (70,))
    truth = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    found = chosen_logprobs(logits, tokens)
    assert found.dtype == torch.float64
    assert (found - truth).abs().max() <= 1e-6
