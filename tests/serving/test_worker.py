"""The thread that computes: what waits goes together, an error stays with its request, nothing stops it."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from fam_engine.jobs.resident import ResidentModel
    from fam_engine.serving.worker import Worker


@pytest.fixture
def worker(resident: ResidentModel) -> Iterator[Worker]:
    from fam_engine.serving.metrics import Metrics
    from fam_engine.serving.worker import Worker

    made = Worker(resident, Metrics())
    yield made
    made.stop()


def pair(*ids: int) -> tuple[Any, Any]:
    return np.array([0, 40], np.int32), np.array(ids, np.int32)


def request(*ids: int, num_samples: int = 1) -> Any:  # noqa: ANN401
    from fam_engine.model.generation.requests import Request

    return Request(np.array([0, *ids], np.int32), seed=1, num_samples=num_samples)


def sampling(max_new_tokens: int, temperature: float = 0.0) -> Any:  # noqa: ANN401
    from fam_engine.model.generation.requests import Sampling

    return Sampling(max_new_tokens=max_new_tokens, temperature=temperature)


def test_scores_that_wait_share_a_batch_and_keep_their_bits(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    compute = resident.continuations

    def counting(pairs: Any, **rest: Any) -> Any:  # noqa: ANN401
        asked.append(len(pairs))
        return compute(pairs, **rest)

    alone = [next(iter(compute([pair(n, n + 1)]))) for n in range(50, 60)]
    monkeypatch.setattr(resident, "continuations", counting)
    futures = [worker.score([pair(n, n + 1)]) for n in range(50, 60)]
    worker.start()
    together = [future.result(60)[0] for future in futures]
    assert asked == [10]
    for one, other in zip(alone, together, strict=True):
        assert one.facts.logprobs.tolist() == other.facts.logprobs.tolist()


def watching(
    resident: ResidentModel, monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]
) -> list[int]:
    """Call something before each batch of scores; give the batches' numbers of pairs."""
    asked: list[int] = []
    compute = resident.continuations

    def watched(pairs: Any, **rest: Any) -> Any:  # noqa: ANN401
        asked.append(len(pairs))
        do(len(asked))
        return compute(pairs, **rest)

    monkeypatch.setattr(resident, "continuations", watched)
    return asked


def pairs_of(context_length: int, num_targets: int, count: int) -> list[Any]:
    context = np.arange(context_length, dtype=np.int32) % 200 + 3
    targets = [np.full(num_targets, 40 + n, np.int32) for n in range(count)]
    return [(context, one) for one in targets]


def test_a_large_request_takes_turns_with_a_small_one_and_keeps_its_bits(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.serving import slices

    monkeypatch.setattr(slices, "_TOKENS_AT_ONCE", 64)
    pairs = pairs_of(20, 10, 30) + pairs_of(1, 100, 3)
    whole = sorted(resident.continuations(pairs, num_top=2), key=lambda one: one.index)
    small: list[Any] = []

    def do(batch: int) -> None:
        if batch == 1:
            small.append(worker.score([pair(50)]))
        if batch == 4:
            assert small[0].done()
            assert not large.done()

    asked = watching(resident, monkeypatch, do)
    large = worker.score(pairs, num_top=2)
    worker.start()
    in_slices = large.result(60)
    # 20 tokens of the context and four times 10 fit; what is larger than a slice goes alone.
    assert asked == [4, 1, *[4] * 6, 2, 1, 1, 1]
    for one, other in zip(whole, in_slices, strict=True):
        assert one.facts.logprobs.tolist() == other.facts.logprobs.tolist()
        assert one.top.logprobs.tolist() == other.top.logprobs.tolist()


def test_a_long_prompt_is_not_computed_for_few_responses_at_a_time(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.serving import slices

    monkeypatch.setattr(slices, "_TOKENS_AT_ONCE", 64)
    asked = watching(resident, monkeypatch, lambda _: None)
    future = worker.score(pairs_of(60, 10, 20))
    worker.start()
    assert len(future.result(60)) == 20
    assert asked == [6, 6, 6, 2]


def test_scores_of_one_who_left_are_not_computed_on(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.serving import slices

    monkeypatch.setattr(slices, "_TOKENS_AT_ONCE", 64)
    asked = watching(resident, monkeypatch, lambda batch: left.cancel() if batch == 2 else None)
    left = worker.score(pairs_of(1, 60, 30))
    worker.start()
    while not left.done():
        time.sleep(0.01)
    assert left.cancelled()
    assert len(worker.score([pair(50)]).result(60)) == 1
    assert asked == [1, 1, 1]


def test_a_large_request_that_fails_is_not_computed_on(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.serving import slices

    def do(batch: int) -> None:
        if batch == 2:
            raise ZeroDivisionError("poison")

    monkeypatch.setattr(slices, "_TOKENS_AT_ONCE", 64)
    asked = watching(resident, monkeypatch, do)
    future = worker.score(pairs_of(1, 60, 30))
    worker.start()
    with pytest.raises(ZeroDivisionError):
        future.result(60)
    assert len(worker.score([pair(50)]).result(60)) == 1
    assert len(asked) == 3


def test_a_bad_request_fails_alone(
    worker: Worker,
    resident: ResidentModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compute = resident.continuations

    def poisoned(pairs: Any, **rest: Any) -> Any:  # noqa: ANN401
        if any(99 in targets for _, targets in pairs):
            raise ZeroDivisionError("poison")
        return compute(pairs, **rest)

    monkeypatch.setattr(resident, "continuations", poisoned)
    good, bad, also = (worker.score([pair(n)]) for n in (50, 99, 51))
    worker.start()
    assert len(good.result(60)) == len(also.result(60)) == 1
    with pytest.raises(ZeroDivisionError):
        bad.result(60)
    assert "poison" in capsys.readouterr().err
    assert len(worker.score([pair(52)]).result(60)) == 1


def test_a_closed_stderr_keeps_nobody_from_an_answer(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed:
        def write(self, _: str) -> int:
            raise BrokenPipeError

    def do(batch: int) -> None:
        if batch == 1:
            raise ZeroDivisionError("poison")

    monkeypatch.setattr(sys, "stderr", Closed())
    watching(resident, monkeypatch, do)
    bad = worker.score([pair(50)])
    worker.start()
    with pytest.raises(ZeroDivisionError):
        bad.result(60)
    assert len(worker.score([pair(50)]).result(60)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_has_ended(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.serving.worker import WorkerStoppedError

    def do(_: int) -> None:
        raise SystemExit

    watching(resident, monkeypatch, do)
    computed, text = worker.score([pair(50)]), worker.generate([request(40)], sampling(3))
    left = worker.score([pair(51)])
    left.cancel()
    worker.start()
    for future in (computed, text):
        with pytest.raises(WorkerStoppedError):
            future.result(60)
    with pytest.raises(WorkerStoppedError):
        worker.score([pair(52)])
    with pytest.raises(WorkerStoppedError):
        worker.generate([request(40)], sampling(3))


def between_steps(
    resident: ResidentModel, monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]
) -> list[int]:
    """Call something after each step of generation; give the steps' numbers of tokens."""
    steps: list[int] = []
    generate = resident.generate

    def watched(requests: Any, how: Any, *, on_step: Callable[[int], None], **rest: Any) -> Any:  # noqa: ANN401
        def step(count: int) -> None:
            steps.append(count)
            do(len(steps))
            on_step(count)

        return generate(requests, how, on_step=step, **rest)

    monkeypatch.setattr(resident, "generate", watched)
    return steps


def test_a_text_joins_a_run_and_a_score_does_not_wait_for_it(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[Any] = []

    def do(step: int) -> None:
        if step == 3:
            later.append(worker.generate([request(41, 42)], sampling(10)))
            later.append(worker.score([pair(50)]))
        if step == 5:
            assert later[1].done()
            assert not first.done()

    steps = between_steps(resident, monkeypatch, do)
    first = worker.generate([request(40)], sampling(10))
    worker.start()
    assert len(first.result(60)[0][0].token_ids) == 10
    joined = later[0].result(60)[0][0]
    assert 2 in steps  # both at once
    assert len(steps) < 20  # one after the other it would be 20
    [plain] = resident.generator.generate([request(41, 42)], sampling(10))
    assert joined.token_ids.tolist() == plain.token_ids.tolist()


def test_scores_that_keep_coming_do_not_keep_a_text_from_being_written(worker: Worker) -> None:
    scored: list[Any] = []

    def again(_: object) -> None:
        if len(scored) < 100 and not text.done():
            scored.append(worker.score([pair(50)]))
            scored[-1].add_done_callback(again)

    text = worker.generate([request(40)], sampling(3))
    again(None)
    worker.start()
    assert len(text.result(60)[0][0].token_ids) == 3
    assert len(scored) < 20


def test_texts_with_other_sampling_take_their_turn(worker: Worker) -> None:
    futures = [
        worker.generate([request(40)], sampling(4, temperature))
        for temperature in (0.0, 0.5, 0.0, 0.5)
    ]
    worker.start()
    texts = [future.result(60)[0][0].token_ids.tolist() for future in futures]
    assert texts[0] == texts[2]
    assert texts[1] == texts[3]


def test_a_run_that_nobody_waits_for_ends(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = between_steps(resident, monkeypatch, lambda step: left.cancel() if step == 3 else None)
    left = worker.generate([request(40)], sampling(200))
    worker.start()
    assert len(worker.score([pair(50)]).result(60)) == 1
    assert len(worker.generate([request(41)], sampling(2)).result(60)) == 1
    assert sum(steps) < 20


def test_nobody_waits_for_the_texts_of_one_who_left(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(step: int) -> None:
        if step == 3:
            many.cancel()

    steps = between_steps(resident, monkeypatch, do)
    # More than there are slots, so that the other would come after hundreds of steps.
    many = worker.generate([request(n, num_samples=64) for n in range(40, 120)], sampling(100, 1.0))
    other = worker.generate([request(40)], sampling(20, 1.0))
    worker.start()
    [[text]] = other.result(60)
    assert len(steps) < 30
    assert sum(steps[3:]) == 20
    [plain] = resident.generator.generate([request(40)], sampling(20, 1.0))
    assert text.token_ids.tolist() == plain.token_ids.tolist()


def test_a_run_forgets_what_it_has_answered(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures: list[Any] = []
    jobs: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def ask() -> None:
        futures.append(worker.generate([request(40 + len(futures) % 50)], sampling(6)))
        jobs.append(weakref.ref(worker._texts[-1]))

    def do(step: int) -> None:
        alive.append(sum(job() is not None for job in jobs))
        if len(futures) < 20 and step % 3 == 0:  # so that one is always on its way
            ask()

    runs: list[Any] = []
    steps = between_steps(resident, monkeypatch, do)
    watched = resident.generate
    monkeypatch.setattr(
        resident, "generate", lambda *a, **rest: runs.append(a[0]) or watched(*a, **rest)
    )
    ask()
    worker.start()
    for _ in range(600):
        if len(futures) == 20:
            break
        time.sleep(0.05)
    assert all(len(future.result(60)[0][0].token_ids) == 6 for future in futures)
    assert len(runs) == 1
    assert len(steps) >= 57
    assert max(alive) <= 4
    assert not runs[0].jobs


def test_a_run_that_fails_is_tried_again_one_by_one(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = resident.generate

    def poisoned(requests: Any, how: Any, **rest: Any) -> Any:  # noqa: ANN401
        for completion in generate(requests, how, **rest):
            if 99 in requests.jobs[0].requests[0].context_ids or len(requests.jobs) > 1:
                raise ZeroDivisionError("poison")
            yield completion

    monkeypatch.setattr(resident, "generate", poisoned)
    good, bad = (worker.generate([request(n)], sampling(3)) for n in (50, 99))
    worker.start()
    assert len(good.result(60)[0][0].token_ids) == 3
    with pytest.raises(ZeroDivisionError):
        bad.result(60)


def test_a_text_that_never_fits_costs_the_others_no_slots(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    tried: list[int] = []
    generate = resident.generate

    def short(requests: Any, how: Any, **rest: Any) -> Any:  # noqa: ANN401
        for completion in generate(requests, how, **rest):
            if 99 in requests.jobs[0].requests[0].context_ids:
                tried.append(resident.generator.max_slots)
                raise torch.OutOfMemoryError
            yield completion

    monkeypatch.setattr(resident, "generate", short)
    monkeypatch.setattr(resident.generator, "max_slots", 64)
    bad = worker.generate([request(99)], sampling(3))
    worker.start()
    with pytest.raises(torch.OutOfMemoryError):
        bad.result(60)
    assert len(worker.generate([request(50)], sampling(3)).result(60)[0][0].token_ids) == 3
    assert tried == [64, 32, 16, 8, 4, 2, 1]
    assert resident.generator.max_slots == 64


def test_slots_that_memory_was_short_for_come_back(
    worker: Worker, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    used: list[int] = []
    generate = resident.generate
    is_short = True

    def short(requests: Any, how: Any, **rest: Any) -> Any:  # noqa: ANN401
        used.append(resident.generator.max_slots)
        for completion in generate(requests, how, **rest):
            if is_short and resident.generator.max_slots > 16:
                raise torch.OutOfMemoryError
            yield completion

    monkeypatch.setattr(resident, "generate", short)
    monkeypatch.setattr(resident.generator, "max_slots", 64)
    worker.start()
    for _ in range(4):
        assert len(worker.generate([request(50)], sampling(3)).result(60)[0][0].token_ids) == 3
        is_short = False
    assert used == [64, 32, 16, 16, 32, 64]


def test_stopping_finishes_what_waits(worker: Worker) -> None:
    futures = [worker.score([pair(n)]) for n in (50, 51)]
    text = worker.generate([request(40)], sampling(5))
    worker.start()
    worker.stop()
    assert all(future.done() for future in (*futures, text))
    assert not worker.is_alive
    assert threading.active_count() >= 1
