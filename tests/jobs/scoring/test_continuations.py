from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from fam_engine.jobs.scoring import continuations as module
from fam_engine.jobs.scoring.continuations import Pair, continuations
from fam_engine.model.loading import load_model
from tests.model.shortages import SHORTAGES

if TYPE_CHECKING:
    from fam_engine.model.decoder import Decoder


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Decoder:
    return load_model(tiny_model, precision="fp32", device="cpu")


def make_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs, three to a context, of lengths from nothing to a few batches' worth."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> Any:  # noqa: ANN401
        return rng.integers(2, 258, rng.integers(low, high)).astype(np.int32)

    contexts = [ids(1, 60) for _ in range(-(-count // 3))]
    return [(contexts[number // 3], ids(0, 40)) for number in range(count)]


def by_index(decoder: Decoder, pairs: list[Pair], **options: Any) -> list[Any]:  # noqa: ANN401
    found = list(continuations(decoder, pairs, **{"max_tokens": 256, **options}))
    return sorted(found, key=lambda one: one.index)


def test_log_probs_are_those_of_transformers(decoder: Decoder, tiny_model: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    pairs = make_pairs(12)
    for one, (context, targets) in zip(by_index(decoder, pairs, num_top=3), pairs, strict=True):
        whole = torch.from_numpy(np.concatenate([context, targets]).astype(np.int64))
        with torch.inference_mode():
            truth = model(whole[None]).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        assert len(one.facts) == len(targets)
        if len(targets) == 0:
            continue
        expected = truth[np.arange(len(targets)), targets.astype(np.int64)]
        assert one.facts.logprobs == pytest.approx(expected.numpy(), abs=5e-5)
        values, ids = truth.topk(3)
        assert one.top.logprobs == pytest.approx(values.numpy(), abs=5e-5)
        assert (one.top.token_ids == ids.numpy()).mean() > 0.95  # but for near ties


def test_a_pair_has_the_same_bits_alone(decoder: Decoder) -> None:
    pairs = make_pairs(12)
    together = by_index(decoder, pairs, num_top=2)
    for one, pair in zip(together, pairs, strict=True):
        [alone] = by_index(decoder, [pair], num_top=2)
        assert alone.facts.logprobs.tobytes() == one.facts.logprobs.tobytes()
        assert alone.top.logprobs.tobytes() == one.top.logprobs.tobytes()
        assert alone.facts.ranks.tolist() == one.facts.ranks.tolist()


def test_the_likeliest_token_has_one_log_prob(decoder: Decoder) -> None:
    # Clients take a token for the likeliest one when no other has a larger log-prob.
    for one in by_index(decoder, make_pairs(30), num_top=1):
        is_best = one.facts.ranks == 1
        best = one.top.logprobs[:, 0] if len(one.facts) else one.facts.logprobs
        assert np.abs(best - one.facts.logprobs)[is_best] == pytest.approx(0, abs=1e-6)
        assert (best > one.facts.logprobs)[~is_best].all()


def test_nothing_gives_nothing(decoder: Decoder) -> None:
    assert by_index(decoder, []) == []
    [one] = by_index(decoder, [(np.array([5], np.int32), np.empty(0, np.int32))], num_top=2)
    assert len(one.facts) == 0


def test_a_batch_too_large_for_memory_is_halved(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = make_pairs(9)
    expected = by_index(decoder, pairs)
    compute, sizes = module.entry_facts, []

    def short_of_memory(decoder: Decoder, spool: Any, entries: Any, **rest: Any) -> Any:  # noqa: ANN401
        sizes.append(len(entries))
        if len(entries) > most:
            raise SHORTAGES[len(sizes) % len(SHORTAGES)]()
        return compute(decoder, spool, entries, **rest)

    monkeypatch.setattr(module, "entry_facts", short_of_memory)
    most = 2
    for one, other in zip(by_index(decoder, pairs, max_tokens=4096), expected, strict=True):
        assert one.facts.logprobs.tobytes() == other.facts.logprobs.tobytes()
    assert max(sizes) == 9
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        by_index(decoder, pairs)
