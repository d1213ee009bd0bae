"""What strangers made is refused or passed by: nothing of it runs, nothing outside is opened, nothing is connected to.

Every artefact is part of a real job of the real command. What a job reached for is known in two ways: from Python's
audit hook, always; from the kernel, for Rust, C and child processes too, where strace may trace.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import adapters, configs, inputs, templates, tokenizers, trace, watched, weights
from tests.hostile.case import Artefact, Case, harmless, lay_out

HARMLESS = harmless("nothing hostile", lambda case: None)
TEMPLATED = harmless("a template like any", templates.plain, same_scores=False)
UNUSUAL = harmless("a tokenizer that only the library reads", tokenizers.unusual, same_scores=False)
MODULES = (weights, configs, adapters, tokenizers, templates, inputs)
ARTEFACTS: dict[str, Artefact] = {
    artefact.name: artefact for module in MODULES for artefact in module.ARTEFACTS
}
HARMLESS_ONES = {one.name: one for one in (HARMLESS, TEMPLATED, UNUSUAL)}
ALL = {**HARMLESS_ONES, **ARTEFACTS}


@dataclass(frozen=True)
class Outcome:
    """What came of all jobs: by name, the case and what `watched` says; the trace, if there is one."""

    cases: Mapping[str, Case]
    results: Mapping[str, dict[str, Any]]
    calls: Mapping[str, list[str]] | None
    cache: Path


def may_trace() -> bool:
    """Whether strace is there and may trace."""
    command = ["strace", "-f", "-e", "trace=openat", "-o", os.devnull, "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def outcome(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("hostile")
    cases, jobs = {}, []
    for number, artefact in enumerate(ALL.values()):
        case = cases[artefact.name] = lay_out(folder / str(number), tiny_model)
        artefact.make(case)
        jobs.append({"name": str(number), "inside": str(case.inside), "command": case.command})
    case = cases[watched.MISBEHAVE] = lay_out(folder / watched.MISBEHAVE, tiny_model)
    name = watched.MISBEHAVE
    jobs.append({"name": name, "inside": str(case.inside), "command": [watched.MISBEHAVE]})
    (folder / "jobs").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.hostile.watched", folder / "jobs", folder / "results"]
    tracing = ["strace", "-f", "-y", "-s", "4096", "--seccomp-bpf", "-o", folder / "trace"]
    is_traced = may_trace()
    if is_traced:
        command = [*tracing, "-e", f"trace={trace.CALLS}", *command]
    cache = folder / "cache"
    environment = os.environ | {
        "FAM_ENGINE_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RUST_BACKTRACE": "0",  # to print one, a library that panics opens what it was built from
    }
    subprocess.run(command, check=True, cwd=trace.ROOT, env=environment, timeout=900)
    found = json.loads((folder / "results").read_text())
    results = dict(zip(cases, found, strict=True))
    calls = None
    if is_traced:
        text = (folder / "trace").read_text(encoding="utf-8", errors="replace")
        split = trace.split_trace(text.splitlines())
        calls = {name: split[job["name"]] for name, job in zip(cases, jobs, strict=True)}
    return Outcome(cases, results, calls, cache)


def usual_files(outcome: Outcome) -> list[str]:
    """Give the files elsewhere that a harmless job opens too: libraries, `/proc`, the clock."""
    seen = [
        path
        for name in HARMLESS_ONES
        for path in trace.events_opened(outcome.results[name]["events"])
    ]
    if outcome.calls is not None:
        seen += [path for name in HARMLESS_ONES for path in trace.trace_opened(outcome.calls[name])]
    return [path for path in seen if path.startswith("/")]


def test_there_are_enough() -> None:
    assert len(ARTEFACTS) == sum(len(module.ARTEFACTS) for module in MODULES)
    assert len(ARTEFACTS) >= 100


@pytest.mark.parametrize("name", ALL)
def test_it_is_refused_or_passed_by(outcome: Outcome, name: str) -> None:
    artefact, case, result = ALL[name], outcome.cases[name], outcome.results[name]
    told = result["out"] + result["err"]
    assert result["code"] == artefact.code, told
    assert not re.search(r"Traceback|panicked|E_BUG", told)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", told)
    if artefact.refused is not None:
        (line,) = [line for line in result["err"].splitlines() if "error[" in line]
        assert re.match(rf"error\[{artefact.refused}", line)
        assert not (case.inside / "out" / "scores.parquet").exists()
    else:
        assert "error[" not in result["err"]
        assert (case.inside / "out" / "scores.parquet").is_file()
    assert not case.canary.exists()
    assert (case.outside / "secret").read_text() == "secret\n"
    if artefact.same_scores:
        scores = [
            (outcome.cases[which].inside / "out" / "scores.parquet").read_bytes()
            for which in (name, HARMLESS.name)
        ]
        assert scores[0] == scores[1]


@pytest.mark.parametrize("name", ALL)
def test_python_opens_nothing_else(outcome: Outcome, name: str) -> None:
    inside = outcome.cases[name].inside
    roots = trace.roots_of(inside, outcome.cache, usual_files(outcome))
    assert not trace.forbidden_events(outcome.results[name]["events"], inside, roots)


@pytest.mark.parametrize("name", ALL)
def test_the_kernel_is_asked_for_nothing_else(outcome: Outcome, name: str) -> None:
    if outcome.calls is None:
        pytest.skip("needs strace, and leave to trace")
    roots = trace.roots_of(outcome.cases[name].inside, outcome.cache, usual_files(outcome))
    assert outcome.calls[name]
    assert not trace.forbidden_calls(outcome.calls[name], roots)


def test_a_job_that_misbehaves_is_seen(outcome: Outcome) -> None:
    """Without this the tests above could pass because the watch is blind."""
    name = watched.MISBEHAVE
    case, events = outcome.cases[name], outcome.results[name]["events"]
    assert case.canary.exists()
    roots = trace.roots_of(case.inside, outcome.cache, usual_files(outcome))
    found = "\n".join(trace.forbidden_events(events, case.inside, roots))
    for sign in ("secret", "canary", "os.system", "pickle.find_class", "socket.connect"):
        assert sign in found
    if outcome.calls is None:
        return
    called = "\n".join(trace.forbidden_calls(outcome.calls[name], roots))
    for sign in ("outside/secret", "outside/canary", "start /bin/sh", "connect("):
        assert sign in called
