"""The log-probs of generated tokens against a scoring pass over the same ids, and over the same text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fam_engine.config import Precision
from fam_engine.data.packing import Int32
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.data.turns import Message
from fam_engine.embedded import DEMO_RECORDS, MODEL
from fam_engine.jobs.scoring.continuations import continuations
from fam_engine.jobs.scoring.scorer import Scorer
from fam_engine.model.decoder import Decoder
from fam_engine.model.devices import ComputeDtype
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.requests import Completion, Request, Sampling
from fam_engine.model.generation.sampling import chosen_logprobs
from fam_engine.model.loading import load_model
from tests.model.generation.conftest import Load, random_requests

# In fp32, nats: attention sums for one query in another order than for many, and so does the head.
TOLERANCE = 1e-5
# What `Completion.logprobs` states for bf16: of tokens on the average, of any, of an answer's mean.
TOLERANCES_BF16 = (0.01, 0.2, 0.01)
BF16_AND_FP32: tuple[ComputeDtype, ...] = ("bf16", "fp32")


def demo_contexts(encoder: TextEncoder) -> tuple[list[str], list[Int32]]:
    """Give the first questions of the demonstration, and their ids."""
    lines = DEMO_RECORDS.read_text(encoding="utf-8").splitlines()[:12]
    prompts = [json.loads(line)["prompt"] for line in lines]
    return prompts, [encoder.encode_context([Message("user", text)], text) for text in prompts]


def check_distances(
    decoders: Sequence[Decoder], requests: Sequence[Request], found: Sequence[Completion]
) -> None:
    """Compare what a model in bf16 wrote with its own score, and the score with that in fp32, same weights."""
    pairs = [(requests[one.request].context_ids, one.token_ids) for one in found]
    scores, exact = (
        {one.index: one.facts.logprobs for one in continuations(decoder, pairs, max_tokens=2048)}
        for decoder in decoders
    )
    apart = [one.logprobs - scores[index] for index, one in enumerate(found)]
    rounding = np.concatenate([scores[index] - exact[index] for index in range(len(found))])
    tokens = np.abs(np.concatenate(apart))
    of_answers = max(abs(differences.mean()) for differences in apart)
    assert len(tokens) > 100
    assert 0 < tokens.mean() <= 1.5 * np.abs(rounding).mean()
    found_tolerances = (tokens.mean(), tokens.max(), of_answers)
    assert all(np.array(found_tolerances) <= TOLERANCES_BF16), found_tolerances


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


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_in_bf16_are_as_near_to_a_scoring_pass_as_that_is_to_fp32(precision: Precision) -> None:
    encoder = TextEncoder(MODEL)
    requests = [Request(context, seed) for seed, context in enumerate(demo_contexts(encoder)[1])]
    decoders = [
        load_model("embedded", precision=precision, compute_dtype=dtype) for dtype in BF16_AND_FP32
    ]
    sampling = Sampling(max_new_tokens=60, temperature=1.0)
    found = list(Generator(decoders[0], encoder).generate(requests, sampling))
    check_distances(decoders, requests, found)


def test_equal_the_score_of_the_same_text() -> None:
    encoder = TextEncoder(MODEL)
    prompts, contexts = demo_contexts(encoder)
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
