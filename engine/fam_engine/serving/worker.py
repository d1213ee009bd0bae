"""The one thread that computes: what requests ask for, gathered into batches across them.

In: pairs to score and contexts to continue, from any thread. Out: futures. What waits to be scored goes together into
the next batches, large requests a slice at a time; contexts whose sampling is the same are continued together, joining
and leaving the run as they come and end, and between two of its steps one batch of what waits to be scored is scored.
So neither a long text nor scores that keep coming hold the other up for ever, and requests for texts wait for each
other only where their sampling differs: then they take turns, first come, first served. Of a request that nobody waits
for any more nothing is computed beyond the step or the batch.

An error of a batch is an error of the requests in it only after each has been tried alone, and of the thread never.
Should the thread end all the same, whoever waits is told, and so is whoever comes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from fam_engine.jobs.resident import ResidentModel
from fam_engine.jobs.scoring.continuations import Continuation, Pair
from fam_engine.model.generation.generator import MAX_SLOTS
from fam_engine.model.generation.requests import Completion, Request, Sampling
from fam_engine.serving.metrics import Metrics
from fam_engine.serving.showing import show
from fam_engine.serving.slices import ScoreJob, Slice, next_batch


class WorkerStoppedError(Exception):
    """Nothing is computed any more."""


@dataclass(eq=False)
class TextJob:
    """Contexts of one request, continued in one run.

    Attributes:
        requests: The contexts.
        sampling: How tokens are chosen.
        future: Gets a list of completions a context, in order of their samples.
        texts: What has come so far.
    """

    requests: Sequence[Request]
    sampling: Sampling
    future: Future[list[list[Completion]]] = field(default_factory=Future)
    texts: list[list[Completion]] = field(default_factory=list)


_Job = TypeVar("_Job", ScoreJob, TextJob)


class Worker:
    """Computes for a server.

    Args:
        model: The model; nobody else may use it meanwhile, but for its tokenizer.
        metrics: What is counted.
    """

    def __init__(self, model: ResidentModel, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics
        self._scores: deque[ScoreJob] = deque()
        self._texts: deque[TextJob] = deque()
        self._wakes = threading.Condition()
        self._is_stopping = False
        # What is not answered yet; None: nothing will be.
        self._open: set[Future[Any]] | None = set()
        self._thread = threading.Thread(target=self._work, name="fam-engine-worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is waiting, then end the thread."""
        with self._wakes:
            self._is_stopping = True
            self._wakes.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether it computes."""
        return self._thread.is_alive()

    def score(self, pairs: Sequence[Pair], *, num_top: int = 0) -> Future[list[Continuation]]:
        """Score pairs.

        Raises:
            WorkerStoppedError: The thread has ended; the future raises it if the thread ends before it is done.
        """
        job = ScoreJob(pairs, num_top)
        self._queue(job, self._scores)
        return job.future

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Future[list[list[Completion]]]:
        """Continue contexts.

        Raises:
            WorkerStoppedError: As of `score`.
        """
        job = TextJob(requests, sampling, texts=[[] for _ in requests])
        self._queue(job, self._texts)
        return job.future

    def _queue(self, job: _Job, waiting: deque[_Job]) -> None:
        with self._wakes:
            if self._open is None:
                raise WorkerStoppedError
            self._open.add(job.future)
            waiting.append(job)
            self._wakes.notify()
        job.future.add_done_callback(self._forget)

    def _forget(self, future: Future[Any]) -> None:
        with self._wakes:
            if self._open is not None:
                self._open.discard(future)

    # -- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._has_work():
                self._score_waiting()
                if self._texts:
                    self._run_texts()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Take no more, and fail what is not answered: nobody should wait for a thread that has ended."""
        with self._wakes:
            left, self._open = self._open or (), None
        for future in left:
            _set_error(future, WorkerStoppedError())

    def _has_work(self) -> bool:
        """Wait for work; False once there is none and the server stops."""
        with self._wakes:
            self._wakes.wait_for(lambda: self._scores or self._texts or self._is_stopping)
            return bool(self._scores or self._texts)

    def _score_waiting(self) -> None:
        """Score one batch of what waits, and no more: where scores keep coming, texts would wait for ever."""
        with self._wakes:
            batch = next_batch(self._scores)
        error = self._score(batch) if batch else None
        for part in batch if error else ():
            own = error if len(batch) == 1 else self._score([part])
            if own:
                _fail(part.job.future, own)
        with self._wakes:
            self._scores.extend(part.job for part in batch if part.job.is_wanted)

    def _score(self, batch: Sequence[Slice]) -> Exception | None:
        """Score a batch and hand out its results; give the error there was instead, if there was one."""
        pairs = [pair for part in batch for pair in part.pairs]
        try:
            found = list(self._model.continuations(pairs, num_top=batch[0].job.num_top))
        except Exception as error:
            return _kept(error)
        results = iter(sorted(found, key=lambda result: result.index))
        self._metrics.add("score_batches")
        for part in batch:
            self._metrics.add("scored_tokens", sum(len(targets) for _, targets in part.pairs))
            part.job.take([next(results) for _ in part.pairs])
        return None

    # -- texts -----------------------------------------------------------------------------------

    def _run_texts(self) -> None:
        """Continue the contexts that wait, and those with the same sampling that come meanwhile."""
        source = _Source(self._texts, self._wakes)
        error = self._run(source)
        if error is None:
            self._double_slots()
        left = [job for job in source.jobs if not job.future.done()]
        for job in left if error else ():
            own = error if len(left) == 1 else self._run_alone(job)
            if own:
                self._run_in_fewer_slots(job, own)

    def _run_in_fewer_slots(self, job: TextJob, error: Exception) -> None:
        """Continue the contexts of a job that failed, fewer at a time if it is memory they lacked."""
        generator = self._model.generator
        num_slots, own = generator.max_slots, error
        while _is_out_of_memory(own) and generator.max_slots > 1:
            generator.max_slots //= 2
            failed = self._run_alone(job)
            if failed is None:
                return
            own = failed
        # Fewer did not help, so others need not go without.
        generator.max_slots = num_slots
        _fail(job.future, own)

    def _double_slots(self) -> None:
        """Take more texts at a time again, if there were fewer: memory that was short may be there now."""
        generator = self._model.generator
        generator.max_slots = min(2 * generator.max_slots, MAX_SLOTS)

    def _run_alone(self, job: TextJob) -> Exception | None:
        job.texts = [[] for _ in job.requests]
        return self._run(_Source(deque([job]), self._wakes))

    def _run(self, source: _Source) -> Exception | None:
        """Continue the contexts of a source; give the error that ended it early, if one did."""
        try:
            for completion in self._model.generate(
                source,
                source.sampling,
                on_step=lambda count: self._between_steps(source, count),
                is_wanted=source.is_wanted,
            ):
                source.take(completion)
        except Exception as error:
            return _kept(error)
        return None

    def _between_steps(self, source: _Source, count: int) -> None:
        self._metrics.add("generated_tokens", count)
        self._score_waiting()
        source.drop_cancelled()


class _Source:
    """The contexts of one run: those that wait, as long as the next one has the same sampling.

    Unlike other iterators it may go on after it has ended: the generator asks again whenever a slot
    is free, and that is how a request joins a run. A run may go on for as long as the server does, so
    what is answered or cancelled is forgotten.

    Args:
        waiting: The jobs, at least one; those it gives are taken off.
        lock: Of `waiting`.

    Attributes:
        sampling: Of all its jobs.
        jobs: Those that somebody waits for.
    """

    def __init__(self, waiting: deque[TextJob], lock: threading.Condition) -> None:
        self._waiting = waiting
        self._lock = lock
        # By number of the request, until its last sample has come.
        self._places: dict[int, tuple[TextJob, int]] = {}
        self._num_given = 0
        self._rest: Iterator[tuple[TextJob, int]] = iter(())
        self.sampling = waiting[0].sampling
        self.jobs: list[TextJob] = []

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> Request:
        for job, place in self._rest:
            if job.future.cancelled():
                continue
            self._places[self._num_given] = job, place
            self._num_given += 1
            return job.requests[place]
        with self._lock:
            while self._waiting and self._waiting[0].sampling == self.sampling:
                job = self._waiting.popleft()
                if job.future.cancelled():
                    continue
                self.jobs.append(job)
                self._rest = iter([(job, place) for place in range(len(job.requests))])
                return next(self)
        raise StopIteration

    def is_wanted(self, number: int) -> bool:
        """Whether somebody waits for a request that was given and is not complete."""
        return number in self._places

    def drop_cancelled(self) -> None:
        """Forget the jobs that nobody waits for any more."""
        for job in [job for job in self.jobs if job.future.cancelled()]:
            self.jobs.remove(job)
            self._places = {n: place for n, place in self._places.items() if place[0] is not job}

    def take(self, completion: Completion) -> None:
        """Hand a completion to its job, and a job that is complete to whoever waits for it."""
        if not self.is_wanted(completion.request):
            return  # it was on its way when its job was cancelled
        job, place = self._places[completion.request]
        job.texts[place].append(completion)
        if len(job.texts[place]) == job.requests[place].num_samples:
            del self._places[completion.request]
        if all(
            len(texts) == request.num_samples
            for texts, request in zip(job.texts, job.requests, strict=True)
        ):
            self.jobs.remove(job)
            ordered = [sorted(texts, key=lambda text: text.sample) for texts in job.texts]
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(ordered)


def _kept(error: Exception) -> Exception:
    """Give an error as it may be kept while something else is tried: a traceback would keep the tensors alive."""
    return error.with_traceback(None) if _is_out_of_memory(error) else error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError)


def _fail(future: Future[Any], error: Exception) -> None:
    """Give an error to whoever waits; one that is not about memory is shown where the server runs."""
    _set_error(future, error)
    if not _is_out_of_memory(error):
        show(error)


def _set_error(future: Future[Any], error: Exception) -> None:
    # A future that was cancelled takes nothing more.
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
