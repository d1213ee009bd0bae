"""Ctrl-C and SIGTERM at any moment: the right exit code within seconds, and nothing lost."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fam_engine._rust_tokenize import JsonLinesReader
from tests.faults.conftest import Whole
from tests.faults.forking import SIGNAL, Run, at_once, faults, run, sample
from tests.faults.small_jobs import OUT, SmallJob, leftovers, smaller
from tests.faults.trials import assert_resumes

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
COMMANDS = ["score", "train", "generate", "rewrite", "eval", "experiment"]
# Of any kind: while a job begins, loads, ends.
NUM_MOMENTS = 50
SECONDS = 10.0
SEED = int.from_bytes(os.urandom(2), "big")

pytestmark = pytest.mark.faults
AnyWhole = Callable[[SmallJob], Whole]


def assert_goes_on(job: SmallJob, folder: Path, whole: Whole, where: object) -> None:
    """Unlike one that was killed, a job that was asked to end leaves nothing unfinished."""
    assert not leftovers(folder / OUT), (where, SEED)
    assert_resumes(job, folder, whole, (where, SEED))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_at_a_call_that_changes_the_folder(
    jobs: dict[str, SmallJob], whole: AnyWhole, tmp_path: Path, command: str
) -> None:
    """It is never overheard: not by a job about to end, not by a step of an experiment."""
    job = smaller(jobs[command])
    undisturbed = whole(job)
    rng = random.Random(SEED)
    # Figures of time are kept now and then: the last call may be missing another time.
    last = undisturbed.num_calls - 2
    numbers = [*sample(command, last - 1, SEED), last]

    def interrupt_at(number: int) -> None:
        folder = tmp_path / str(number)
        sent = rng.choice(list(CODES))
        ended = run(job.line, folder, faults(folder / OUT, SIGNAL, number, sent))
        assert ended.code == CODES[sent], (number, ended, SEED)
        assert ended.errors.startswith(f"interrupted by {sent.name}; run the same command again")
        assert len(ended.errors.splitlines()) == 1
        assert_goes_on(job, folder, undisturbed, number)

    at_once(interrupt_at, numbers)


def test_a_signal_at_a_random_moment(
    jobs: dict[str, SmallJob], whole: AnyWhole, tmp_path: Path
) -> None:
    """Before the job's own handler is there and after it is gone, signals have their usual course."""
    rng = random.Random(SEED)

    def interrupt(number: int) -> float:
        job = jobs[rng.choice(["score", "train", "generate", "eval"])]
        folder, sent = tmp_path / str(number), rng.choice(list(CODES))
        running = Run(job.line, folder)
        running.wait_for_start()
        time.sleep(rng.uniform(0.0, 1.0) * whole(job).seconds)
        running.signal(sent)
        began = time.perf_counter()
        ended = running.wait()
        seconds = time.perf_counter() - began
        assert ended.code in (CODES[sent], -sent, job.finished), (job.command, ended, SEED)
        assert "Traceback" not in ended.errors or ended.code == -sent, ended
        if (folder / OUT).exists():
            assert_goes_on(job, folder, whole(job), job.command)
        return seconds

    for command in ("score", "train", "generate", "eval"):
        whole(jobs[command])
    assert max(at_once(interrupt, range(NUM_MOMENTS))) < SECONDS


@pytest.mark.parametrize("sent", CODES)
def test_a_signal_while_a_model_loads(
    jobs: dict[str, SmallJob], whole: AnyWhole, tmp_path: Path, sent: signal.Signals
) -> None:
    job, folder = smaller(jobs["score"]), tmp_path / "loading"
    running = Run(job.line, folder, load_for_ever)
    wait_for(folder / "loading", running)
    began = time.perf_counter()
    running.signal(sent)
    assert running.wait().code == CODES[sent]
    assert time.perf_counter() - began < SECONDS
    assert_goes_on(job, folder, whole(job), sent)


def test_a_step_of_training_is_waited_for_and_a_second_signal_is_not(
    jobs: dict[str, SmallJob], whole: AnyWhole, tmp_path: Path
) -> None:
    job, folder = smaller(jobs["train"]), tmp_path / "stepping"
    running = Run(job.line, folder, step_for_ever)
    wait_for(folder / "stepping", running)
    running.signal(signal.SIGINT)
    time.sleep(1.0)
    assert running.is_alive()
    began = time.perf_counter()
    running.signal(signal.SIGINT)
    assert running.wait().code == -signal.SIGINT
    assert time.perf_counter() - began < 1.0
    assert_goes_on(job, folder, whole(job), "second signal")


@pytest.mark.parametrize("endless", ["line", "check"])
def test_a_signal_within_one_call_of_rust(model: Path, tmp_path: Path, endless: str) -> None:
    folder, data = tmp_path / endless, tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "", "response": "word " * 200}) + "\n")
    if endless == "line":
        os.truncate(data, 1 << 40)
    job = SmallJob("tokenize", ("--model", str(model), "--data", str(data), "--verify"), 0)
    running = Run(job.line, folder, {"line": tell_of_reading, "check": check_for_ever}[endless])
    wait_for(folder / "busy", running)
    running.signal(signal.SIGINT)
    ended = running.wait()
    assert ended.code == CODES[signal.SIGINT]
    assert ended.errors.startswith("interrupted by SIGINT; run the same command again")
    assert len(ended.errors.splitlines()) == 1
    assert not leftovers(folder / OUT)


def wait_for(file: Path, running: Run) -> None:
    while not file.exists():
        assert running.is_alive(), running.wait()
        time.sleep(0.01)


def load_for_ever() -> None:
    from fam_engine.jobs.scoring import job

    def load(*_: object) -> None:
        Path("loading").touch()
        time.sleep(600)

    job.open_model = load  # type: ignore[assignment]


def tell_of_reading() -> None:
    from fam_engine.data import reading

    open_lines = reading.open_lines

    def tell_and_open(path: Path) -> JsonLinesReader:
        Path("busy").touch()
        return open_lines(path)

    reading.open_lines = tell_and_open


def check_for_ever() -> None:
    from fam_engine.jobs.tokenizing.checking import TextCheck

    def compare(self: TextCheck) -> None:
        Path("busy").touch()
        self._encoder.tokenizer.verify([self._records[0].response] * 1_000_000)

    TextCheck._compare = compare  # type: ignore[method-assign]


def step_for_ever() -> None:
    from fam_engine.jobs import interrupts
    from fam_engine.jobs.training.loop import TrainingLoop

    def step(*_: object) -> None:
        Path("stepping").touch()
        time.sleep(600)

    TrainingLoop._step = step  # type: ignore[method-assign]
    interrupts.GRACE_SECONDS = 0.1
