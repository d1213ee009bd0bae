"""The generator against transformers, and against itself in other company."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers

from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import ModelRefusedError, UsageError
from fam_engine.model import ops
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation import batching, stepping
from fam_engine.model.generation import generator as generator_module
from fam_engine.model.generation.cache import KVCache, bytes_per_position
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.prompts import pack_prompts
from fam_engine.model.generation.requests import Completion, Request, Sampling
from fam_engine.model.generation.stepping import CapturedStep, Stepper
from fam_engine.model.loading import load_model, with_adapter
from tests.model.conftest import TinyCheckpoint
from tests.model.generation.conftest import Load, by_sample, random_requests, write_tokenizer
from tests.model.test_lora import save_adapter

# From karpathy/llama2.c, test_all.py: stories260K, greedy, 200 steps.
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to "
    "do.\"\nLily didn't want to help her mom, so she"
)
# Prompts shorter and longer than the windows below and than the grid of 64.
LENGTHS = [1, 3, 10, 30, 64, 70]


def theirs(folder: Path, context: list[int], count: int) -> list[int]:
    """Let transformers continue a context greedily, without what ended it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = model.generate(
        torch.tensor([context]), max_new_tokens=count, do_sample=False, pad_token_id=0
    )[0].tolist()[len(context) :]
    return ids[:-1] if ids[-1] == 2 else ids


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": 11}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("smollm3", {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 11}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    ],
)
def test_greedy_equals_transformers(
    tiny_checkpoint: TinyCheckpoint, model_type: str, overrides: dict[str, Any]
) -> None:
    folder = tiny_checkpoint(model_type, **overrides)
    write_tokenizer(folder, 160)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp32")
    requests = random_requests(LENGTHS)
    # Three slots for six texts: each is used again.
    generator = Generator(decoder, TextEncoder(folder), max_slots=3)
    found = by_sample(list(generator.generate(requests, Sampling(max_new_tokens=40))))
    for number, request in enumerate(requests):
        assert found[number, 0] == theirs(folder, request.context_ids.tolist(), 40)


def test_a_real_model_tells_its_story(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    decoder = load_model(folder, precision="fp32", compute_dtype="fp32")
    generator = Generator(decoder, TextEncoder(folder))
    request = Request(np.array([1], np.int32), seed=0)
    (completion,) = generator.generate([request], Sampling(max_new_tokens=200))
    # As a continuation the first word keeps the blank that SentencePiece wrote before it.
    assert completion.text == f" {STORY}"
    assert completion.finish_reason == "length"
    encoder = TextEncoder(folder)
    again, _ = encoder.tokenizer.encode_batch([completion.text], continuation=True)
    assert again.tolist() == completion.token_ids.tolist()


SAMPLED = Sampling(max_new_tokens=24, temperature=1.0, top_p=0.95)


@pytest.mark.parametrize(
    ("precision", "compute_dtype", "num_threads"),
    [("fp32", "fp32", 1), ("nf4", "bf16", 1), ("nf4", "fp32", 3), ("bf16", "bf16", 3)],
)
def test_a_text_depends_on_its_request_alone(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    compute_dtype: str,
    num_threads: int,
) -> None:
    torch.set_num_threads(num_threads)
    monkeypatch.setattr(batching, "_FLOPS_FOR_THREADS", 0)
    decoder, encoder = load(
        "mistral",
        precision=precision,
        compute_dtype=compute_dtype,
        sliding_window=20,
        intermediate_size=172,
        num_hidden_layers=2,
    )
    requests = random_requests([1, 2, 33, 7, 64, 65, 130, 5, 20, 3], num_samples=3)
    together = by_sample(list(Generator(decoder, encoder).generate(requests, SAMPLED)))
    assert len(together) == 30
    assert len({tuple(ids) for ids in together.values()}) > 25, "samples should differ"

    few = Generator(decoder, encoder, max_slots=4)
    order = np.random.default_rng(0).permutation(len(requests)).tolist()
    shuffled = by_sample(list(few.generate([requests[i] for i in order], SAMPLED)))
    assert {(order[i], sample): ids for (i, sample), ids in shuffled.items()} == together
    for number in (2, 6, 9):
        alone = by_sample(list(Generator(decoder, encoder).generate([requests[number]], SAMPLED)))
        assert alone == {(0, k): together[number, k] for k in range(3)}


@pytest.mark.parametrize("max_slots", [0, 65])
def test_slots_are_as_many_as_one_product_takes(load: Load, max_slots: int) -> None:
    """Beyond 64 rows a GPU multiplies otherwise, and a text would depend on how many there are."""
    with pytest.raises(ValueError, match="expected 1 to 64"):
        Generator(*load("llama"), max_slots=max_slots)


def test_matrices_made_ready_step_by_step_give_the_same_texts(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, encoder = load("llama", precision="nf4", compute_dtype="bf16")
    assert decoder.ready_bytes == decoder.made_ready().weights.memory_bytes - sum(
        tensor.numel() * tensor.element_size()
        for tensor in dict.fromkeys(decoder.made_ready().weights.tensors())
        if tensor.ndim < 2
        or tensor is decoder.weights.embed_VD
        or tensor is decoder.weights.head_VD
    )
    requests = random_requests([4, 40], num_samples=2)
    ready = by_sample(list(Generator(decoder, encoder).generate(requests, SAMPLED)))
    # No free memory: nothing is kept ready, and there is one slot.
    monkeypatch.setattr(generator_module, "free_bytes", lambda _: 0)
    one_by_one = by_sample(list(Generator(decoder, encoder).generate(requests, SAMPLED)))
    assert one_by_one == ready


def test_a_prompt_is_computed_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, encoder = load("llama")
    batches: list[int] = []
    original = Decoder.hidden_rows

    def counting(self: Decoder, batch: Any, **options: Any) -> torch.Tensor:  # noqa: ANN401
        batches.append(batch.num_rows)
        return original(self, batch, **options)

    monkeypatch.setattr(Decoder, "hidden_rows", counting)
    requests = random_requests([9, 12, 3], num_samples=8)
    generator = Generator(decoder, encoder, max_slots=5)
    assert len(list(generator.generate(requests, SAMPLED))) == 24
    assert sum(batches) == 3


def test_greedy_samples_are_all_the_same(load: Load) -> None:
    decoder, encoder = load("qwen2")
    generator = Generator(decoder, encoder)
    found = by_sample(list(generator.generate(random_requests([5], num_samples=3), Sampling())))
    assert found[0, 0] == found[0, 1] == found[0, 2]


def complete(decoder: Decoder, encoder: TextEncoder, sampling: Sampling) -> Completion:
    (completion,) = Generator(decoder, encoder).generate(random_requests([12]), sampling)
    return completion


def test_stop_strings_end_a_text_however_tokens_cut_them(load: Load) -> None:
    decoder, encoder = load("llama")
    whole = complete(decoder, encoder, Sampling(max_new_tokens=30))
    assert len(whole.text) > 12
    # Every token is one character here, so a longer string spans tokens.
    stop = whole.text[6:10]
    place = whole.text.find(stop)
    cut = complete(decoder, encoder, Sampling(max_new_tokens=30, stop=("never there", stop)))
    assert (cut.text, cut.finish_reason) == (whole.text[:place], "stop")
    assert encoder.tokenizer.decode(cut.token_ids) == cut.text


def test_an_end_token_ends_a_text_and_is_not_in_it(load: Load) -> None:
    decoder, encoder = load("llama")
    whole = complete(decoder, encoder, Sampling(max_new_tokens=10))
    end = int(whole.token_ids[4])
    ending = Decoder(
        replace(decoder.config, eos_token_ids=(2, end)),
        decoder.weights,
        precision="fp32",
        compute_dtype=torch.float32,
        device=decoder.device,
    )
    first = whole.token_ids.tolist().index(end)
    cut = complete(ending, encoder, Sampling(max_new_tokens=10))
    assert cut.token_ids.tolist() == whole.token_ids[:first].tolist()
    assert cut.finish_reason == "eos"


def test_generation_config_names_end_tokens(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama")
    file = folder / "generation_config.json"
    file.write_text('{"eos_token_id": [2, 9]}')
    assert load_model(folder, precision="fp32").config.eos_token_ids == (2, 9)
    file.write_text('{"eos_token_id": 160}')
    with pytest.raises(ModelRefusedError, match="eos_token_id"):
        load_model(folder, precision="fp32")


def test_the_length_of_the_model_ends_a_text(load: Load) -> None:
    decoder, encoder = load("llama")  # 256 positions
    requests = random_requests([250, 256, 300, 5], num_samples=2)
    found = list(Generator(decoder, encoder).generate(requests, SAMPLED))
    lengths = {(one.request, one.sample): (len(one.token_ids), one.finish_reason) for one in found}
    assert len(found) == 8
    assert lengths[0, 0][0] <= 6
    assert lengths[1, 1] == lengths[2, 0] == (0, "length")


def test_a_model_that_gives_no_numbers_ends_only_its_own_text(load: Load) -> None:
    decoder, encoder = load("llama")
    embed_VD = decoder.weights.embed_VD.clone()
    embed_VD[7] = torch.nan
    sick = Decoder(
        decoder.config,
        replace(decoder.weights, embed_VD=embed_VD),
        precision="fp32",
        compute_dtype=torch.float32,
        device=decoder.device,
    )
    healthy = random_requests([9])[0]
    healthy.context_ids[healthy.context_ids == 7] = 8
    poisoned = Request(np.array([5, 7, 9], np.int32), seed=0)
    found = {
        one.request: one for one in Generator(sick, encoder).generate([poisoned, healthy], SAMPLED)
    }
    assert found[0].finish_reason == "nonfinite"
    (alone,) = Generator(decoder, encoder).generate([healthy], SAMPLED)
    # Up to where the text itself may come to the poisoned token.
    assert found[1].token_ids[:1].tolist() == alone.token_ids[:1].tolist()


def test_requests_are_read_as_slots_become_free(load: Load) -> None:
    decoder, encoder = load("llama")
    asked = 0

    def endless() -> Any:  # noqa: ANN401
        nonlocal asked
        while True:
            asked += 1
            yield Request(np.full(100, 5, np.int32), seed=asked)

    run = Generator(decoder, encoder, max_slots=2).generate(endless(), Sampling(max_new_tokens=3))
    for _ in range(4):
        next(run)
    assert asked < 30


@pytest.mark.parametrize(("flops", "used"), [(1 << 27, 1), (0, 3)])
def test_small_steps_run_on_one_thread(
    load: Load, monkeypatch: pytest.MonkeyPatch, flops: int, used: int
) -> None:
    torch.set_num_threads(3)
    monkeypatch.setattr(batching, "_FLOPS_FOR_THREADS", flops)
    decoder, encoder = load("llama")
    seen: list[int] = []
    run = Generator(decoder, encoder).generate(
        random_requests([3]), SAMPLED, on_step=lambda _: seen.append(torch.get_num_threads())
    )
    list(run)
    assert set(seen) == {used}
    assert torch.get_num_threads() == 3


def test_an_exception_from_outside_ends_the_run(load: Load) -> None:
    decoder, encoder = load("llama")

    def stop(count: int) -> None:
        assert count == 2
        raise KeyboardInterrupt

    run = Generator(decoder, encoder).generate(random_requests([3, 4]), SAMPLED, on_step=stop)
    with pytest.raises(KeyboardInterrupt):
        next(run)


@pytest.mark.parametrize("steps_a_round", [1, 8])
def test_what_is_not_wanted_any_more_is_dropped_and_others_keep_their_texts(
    load: Load, monkeypatch: pytest.MonkeyPatch, steps_a_round: int
) -> None:
    decoder, encoder = load("llama")
    monkeypatch.setitem(batching.STEPS_A_ROUND, "cpu", steps_a_round)
    monkeypatch.setattr(batching, "BATCH_TOKENS", 30)  # some requests wait for their batch
    requests = random_requests([5, 9, 12, 7, 20], num_samples=4)
    generator = Generator(decoder, encoder, max_slots=3)
    sampling = Sampling(max_new_tokens=40, temperature=1.0)
    all_of_them = by_sample(list(generator.generate(requests, sampling)))
    # One on its way, one whose prompt is computed, one that is read.
    gone: set[int] = set()
    made: list[int] = []

    def step(count: int) -> None:
        made.append(count)
        if len(made) == 3:
            gone.update({0, 2, 3})

    found = by_sample(
        list(
            generator.generate(
                requests, sampling, on_step=step, is_wanted=lambda number: number not in gone
            )
        )
    )
    assert found == {key: ids for key, ids in all_of_them.items() if key[0] in (1, 4)}
    left = sum(len(ids) + 1 for ids in found.values())
    assert sum(made) <= left + 3 * (steps_a_round + 3)


def test_adapters_take_turns_over_one_base(load: Load, tmp_path: Path) -> None:
    decoder, encoder = load("llama", precision="nf4")
    folder = tmp_path / "llama-0"
    save_adapter(folder, tmp_path / "adapter", r=4, target_modules=["q_proj", "down_proj"])

    def text(one: Decoder) -> list[int]:
        return complete(one, encoder, Sampling(max_new_tokens=20)).token_ids.tolist()

    with_one = with_adapter(decoder, tmp_path / "adapter")
    loaded = load_model(folder, adapter=tmp_path / "adapter", precision="nf4", compute_dtype="fp32")
    assert text(with_one) == text(loaded) != text(decoder)
    assert text(with_adapter(with_one, None)) == text(decoder)
    assert with_one.weights.layers[0].qkv.weight is decoder.weights.layers[0].qkv.weight


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": 1e-9},
        {"top_p": 0.0},
        {"top_k": -1},
        {"stop": ("",)},
        {"max_new_tokens": 4.5},
        {"max_new_tokens": True},
        {"temperature": "1"},
        {"top_p": None},
        {"top_k": 5.5},
        {"stop": ["a", 3]},
        {"stop": None},
    ],
)
def test_sampling_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    [name] = wrong
    with pytest.raises(UsageError, match=name):
        Sampling(**wrong)


def test_stop_strings_become_a_tuple_and_numpys_numbers_count() -> None:
    alone: Any = "\n"
    several: Any = ["a", "bc"]
    assert Sampling(stop=alone).stop == ("\n",)
    assert Sampling(stop=several) == Sampling(stop=("a", "bc"))
    number: Any = np.int64(3)
    assert Sampling(max_new_tokens=number, top_k=number).top_k == 3


def everything(completions: list[Completion]) -> dict[tuple[int, int], object]:
    """Give all that is in each completion, by request and sample."""
    return {
        (one.request, one.sample): (
            one.token_ids.tolist(),
            one.text,
            one.finish_reason,
            one.end_token_id,
            None if one.logprobs is None else one.logprobs.tolist(),
        )
        for one in completions
    }


@pytest.mark.parametrize("steps", [3, 8])
def test_looking_rarely_changes_no_text(
    load: Load, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    decoder, encoder = load("llama", num_hidden_layers=2)
    requests = random_requests([1, 3, 30, 64, 70, 5], num_samples=3)
    plain = Sampling(max_new_tokens=21, temperature=1.0)
    first = list(Generator(decoder, encoder).generate(requests, plain))
    # What some of the texts hold, so that all three endings come, in the middle of rounds too.
    stop = (first[0].text[4:6], first[5].text[10:12])
    sampling = replace(plain, stop=stop)
    ending = Decoder(
        replace(decoder.config, eos_token_ids=(2, int(first[2].token_ids[3]))),
        decoder.weights,
        precision="fp32",
        compute_dtype=torch.float32,
        device=decoder.device,
    )

    def run() -> dict[tuple[int, int], object]:
        made: list[int] = []
        generator = Generator(ending, encoder, max_slots=4)
        found = list(generator.generate(requests, sampling, on_step=made.append))
        assert {one.finish_reason for one in found} == {"eos", "stop", "length"}
        ended = sum(one.finish_reason == "eos" for one in found)
        assert sum(made) >= sum(len(one.token_ids) for one in found) + ended
        return everything(found)

    expected = run()
    monkeypatch.setattr(batching, "STEPS_A_ROUND", {"cpu": steps})
    assert run() == expected


def test_prompts_kept_once_give_the_same_texts(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, encoder = load("mistral", sliding_window=20, num_hidden_layers=2)
    requests = random_requests([1, 33, 64, 7, 130, 5], num_samples=3)
    expected = everything(
        list(Generator(decoder, encoder, max_slots=4).generate(requests, SAMPLED))
    )
    kept: list[int] = []

    def make_cache(self: Generator, longest: int, most: int, _: int) -> KVCache:
        # Fewer prompts than slots: texts of a third question wait for one of two to end.
        return KVCache(
            decoder.config,
            num_slots=4,
            capacity=-(-most // 64) * 64,
            num_prompts=2,
            prompt_capacity=-(-longest // 64) * 64,
            dtype=torch.float32,
            device=decoder.device,
        )

    keep = KVCache._keep

    def counting(self: KVCache, prompt: int, kv: Any) -> int:  # noqa: ANN401
        kept.append(prompt not in self._held)
        return keep(self, prompt, kv)

    monkeypatch.setattr(Generator, "_make_cache", make_cache)
    monkeypatch.setattr(KVCache, "_keep", counting)
    found = everything(list(Generator(decoder, encoder).generate(requests, SAMPLED)))
    assert found == expected
    assert (len(kept), sum(kept)) == (18, 6)


def test_a_step_s_tensors_stay_where_they_are(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, encoder = load("llama", num_hidden_layers=2)
    places: list[tuple[int, ...]] = []
    advance = Stepper.advance

    def note_places(self: Stepper, num_rows: int) -> None:
        advance(self, num_rows)
        held = [*vars(self).values(), *vars(self._cache).values(), *self._cache._layers]
        places.append(tuple(one.data_ptr() for one in held if isinstance(one, torch.Tensor)))

    monkeypatch.setattr(Stepper, "advance", note_places)
    requests = random_requests([3, 30, 64], num_samples=3)
    list(Generator(decoder, encoder, max_slots=4).generate(requests, SAMPLED))
    assert len(places) > 24
    assert len(set(places)) == 1
    assert len(places[0]) >= 10


@pytest.mark.parametrize("plain_runs", [0, 5])
def test_what_comes_often_is_captured_once(
    load: Load, monkeypatch: pytest.MonkeyPatch, plain_runs: int
) -> None:
    decoder, encoder = load("llama", num_hidden_layers=2)
    requests = random_requests([3, 30, 64], num_samples=3)
    expected = everything(
        list(Generator(decoder, encoder, max_slots=4).generate(requests, SAMPLED))
    )
    captured: list[int] = []
    replayed: list[int] = []

    class Recorded:
        """Stands for a graph: what it noted is run when it is replayed."""

        def __init__(self, stepper: Stepper, num_rows: int, pool: object, stream: object) -> None:
            assert pool is stream is None
            captured.append(num_rows)
            self._step = partial(stepper.advance, num_rows)

        def replay(self) -> None:
            replayed.append(1)
            self._step()

    make = Stepper.__init__

    def make_capturing(self: Stepper, *rest: Any) -> None:  # noqa: ANN401
        make(self, *rest)
        self._is_captured = True

    monkeypatch.setattr(Stepper, "__init__", make_capturing)
    monkeypatch.setattr(stepping, "CapturedStep", Recorded)
    monkeypatch.setattr(stepping, "PLAIN_RUNS", plain_runs)
    found = everything(list(Generator(decoder, encoder, max_slots=4).generate(requests, SAMPLED)))
    assert found == expected
    assert captured == [64]
    assert len(replayed) > 24 - plain_runs


@pytest.mark.parametrize(
    ("said", "raised"),
    [("CUDA error: out of memory", torch.OutOfMemoryError), ("CUDA error: other", RuntimeError)],
)
def test_memory_the_driver_lacks_for_a_graph_is_memory_that_ran_out(
    monkeypatch: pytest.MonkeyPatch, said: str, raised: type[RuntimeError]
) -> None:
    @contextlib.contextmanager
    def capture(graph: object, pool: object, stream: object) -> Iterator[None]:
        yield
        raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    with pytest.raises(RuntimeError, match=said) as caught:
        CapturedStep(Mock(), 8, pool=None, stream=None)
    assert caught.type is raised


def test_a_run_that_fails_lets_go_of_its_steps_at_once(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, encoder = load("llama")
    steppers: list[weakref.ref[Stepper]] = []
    make = Stepper.__init__

    def noted(self: Stepper, *rest: Any) -> None:  # noqa: ANN401
        make(self, *rest)
        steppers.append(weakref.ref(self))

    def fail(_: int) -> None:
        raise RuntimeError("enough")

    monkeypatch.setattr(Stepper, "__init__", noted)
    run = Generator(decoder, encoder).generate(random_requests([3, 4]), SAMPLED, on_step=fail)
    with pytest.raises(RuntimeError, match="enough") as kept:
        list(run)
    assert kept.tb is not None  # whose frames know the run
    assert [stepper() for stepper in steppers] == [None]


def test_prompts_are_computed_in_batches_of_bounded_size(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, encoder = load("llama", max_position_embeddings=2048)
    batches: list[tuple[int, int]] = []
    original = batching.compute_prompts

    def counting(decoder: Decoder, contexts: list[Any]) -> Any:  # noqa: ANN401
        batches.append((len(contexts), sum(map(len, contexts))))
        return original(decoder, contexts)

    monkeypatch.setattr(batching, "compute_prompts", counting)
    requests = random_requests([1500, 600, 500, 400, *[2] * 70])
    list(Generator(decoder, encoder).generate(requests, Sampling(max_new_tokens=2)))
    assert batches == [(1, 1500), (1, 600), (64, 1024), (8, 16)]


def test_many_batches_are_read_one_after_another(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, encoder = load("llama")
    monkeypatch.setattr(batching, "BATCH_TOKENS", 3)
    requests = random_requests([2] * 40)
    few = Generator(decoder, encoder, max_slots=2)
    found = by_sample(list(few.generate(requests, Sampling(max_new_tokens=1))))
    assert sorted(found) == [(number, 0) for number in range(40)]


def test_batches_are_filled_to_one_height() -> None:
    contexts = [np.arange(3, 3 + n, dtype=np.int32) for n in (5, 80)]
    for at_least, height in ((0, 128), (1024, 1024), (100, 128)):
        batch = pack_prompts(contexts, at_least=at_least)
        assert len(batch.input_ids) == len(batch.position_ids) == batch.cu_seqlens[-1] == height
        assert batch.rows[:2].tolist() == [4, 84]
        assert len(batch.rows) == 64


@pytest.mark.parametrize(
    ("free_positions", "num_slots", "num_prompts"),
    # Prompts of 128, continuations of 64, 4 samples: a slot and its part of a prompt take 96.
    [(1 << 20, 8, 8), (8 * 96, 8, 2), (5 * 96, 5, 1), (0, 1, 1)],
)
def test_memory_goes_to_slots_then_to_prompts(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    free_positions: int,
    num_slots: int,
    num_prompts: int,
) -> None:
    decoder, encoder = load("llama")
    generator = Generator(decoder, encoder, max_slots=8)
    a_position = bytes_per_position(decoder.config, torch.float32)
    monkeypatch.setattr(generator_module, "free_bytes", lambda _: 2 * free_positions * a_position)
    monkeypatch.setattr(ops, "takes_triton", lambda _: True)
    cache = generator._make_cache(100, 50, 4)
    assert (cache.num_slots, cache.capacity, cache.prompt_capacity) == (num_slots, 64, 128)
    assert len(cache._users) == num_prompts
