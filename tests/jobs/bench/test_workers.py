from __future__ import annotations

import importlib
import os
import time
from pathlib import Path

import pytest

from fam_engine.errors import UsageError
from fam_engine.jobs.bench.workers import Run, Worker, take_turns


class Echo:
    """Answers with what it was made and run with, and where."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0

    def run(self, *arguments: object) -> tuple[object, ...]:
        self.calls += 1
        return self.name, os.getpid(), self.calls, arguments


class Sleeper:
    def run(self, seconds: float) -> None:
        time.sleep(seconds)


class Hoarder:
    def run(self, num_bytes: int) -> None:
        b"x" * num_bytes


class Refuser:
    def __init__(self) -> None:
        raise UsageError("no such thing", code="E_TEST")


class Importer:
    def run(self, name: str) -> str:
        return str(importlib.import_module(name).WHERE)


class Dier:
    def run(self) -> None:
        os._exit(3)


def test_a_subject_lives_in_one_process_of_its_own() -> None:
    with Worker(Echo, "one") as worker:
        first, second = worker.run(1, "a"), worker.run()
    name, process, calls, arguments = first.answer
    assert (name, calls, arguments) == ("one", 1, (1, "a"))
    assert process != os.getpid()
    assert second.answer == ("one", process, 2, ())


def test_packages_of_the_caller_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_peer_of_ours.py").write_text("WHERE = 'beside us'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker(Importer) as worker:
        assert worker.run("a_peer_of_ours").answer == "beside us"


def test_time_and_memory_are_those_of_the_run() -> None:
    with Worker(Sleeper) as worker:
        run = worker.run(0.2)
    assert run.seconds >= 0.2
    assert run.cpu_seconds < 0.1
    with Worker(Hoarder) as worker:
        small, large = worker.run(10), worker.run(200 << 20)
    assert large.peak_bytes - small.peak_bytes > 150 << 20
    assert small.peak_bytes >= worker.loaded_bytes > 0


def test_subjects_take_turns() -> None:
    with Worker(Echo, "a") as a, Worker(Echo, "b") as b:
        runs = take_turns({"a": a, "b": b}, {"a": (1,), "b": (2,)}, rounds=3)
    assert [run.answer[2] for run in runs["a"]] == [1, 2, 3]
    assert {run.answer[3] for run in runs["b"]} == {(2,)}
    assert all(isinstance(run, Run) for run in runs["a"] + runs["b"])


def test_what_cannot_be_made_says_why() -> None:
    with pytest.raises(UsageError, match="no such thing"):
        Worker(Refuser)


def test_a_process_that_dies_is_no_silence() -> None:
    with Worker(Dier) as worker, pytest.raises(RuntimeError, match="exit code 3"):
        worker.run()
